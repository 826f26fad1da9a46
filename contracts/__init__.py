"""What two parties must agree on byte for byte: the registry and the messages between them.

Solidity sources, their tests and the one compiled artifact lie in this folder too.
"""
