"""Who made a student, from what, and how anyone can check it.

    from genkd.provenance import Policy, verify
    print(verify("student-0x...", policy=Policy()).summary)

Imports neither torch nor flwr nor web3, so that an auditor's laptop verifies in half a second.
"""
