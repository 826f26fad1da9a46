"""Stop signals, for the node's verbs: see `genkd.signals`."""

from genkd.signals import RESUME_HINT, stop_signals

__all__ = ["RESUME_HINT", "stop_signals"]
