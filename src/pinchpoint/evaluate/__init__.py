"""The verdict. An attack proposes; here ball, box and label are checked again, in float32, by code no attack uses.

A sample counts as fallen only if an example passed that check. The record says which stage settled it.
"""

from pinchpoint.evaluate.attacks import Attack, default_attacks
from pinchpoint.evaluate.curve import robust_curve, smallest_eps
from pinchpoint.evaluate.engine import Progress, Watcher, robust_accuracy
from pinchpoint.evaluate.logits import accuracy, cross_entropy_loss, logits_of
from pinchpoint.evaluate.losses import adversarial_loss, universal_accuracy
from pinchpoint.evaluate.masking import masking_warnings
from pinchpoint.evaluate.verdict import Verdict, save_examples, within

__all__ = [
    "Attack",
    "Progress",
    "Verdict",
    "Watcher",
    "accuracy",
    "adversarial_loss",
    "cross_entropy_loss",
    "default_attacks",
    "logits_of",
    "masking_warnings",
    "robust_accuracy",
    "robust_curve",
    "save_examples",
    "smallest_eps",
    "universal_accuracy",
    "within",
]
