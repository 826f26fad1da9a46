"""What runs on a node: the command line `genkd-node`, its settings, its preflight.

Parse, call, print: what is decided lives in `genkd`.
"""
