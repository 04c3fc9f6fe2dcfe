"""The verdict. An attack proposes; here ball, box and label are checked again, in float32, by code no attack uses.

A sample counts as fallen only if an example passed that check. The record says which stage settled it.
"""

from pinchpoint.evaluate.certified import attack_certified
from pinchpoint.evaluate.curve import robust_curve, smallest_eps
from pinchpoint.evaluate.default_attacks import Attack, default_attacks
from pinchpoint.evaluate.logits import accuracy, cross_entropy_loss, logits_of
from pinchpoint.evaluate.losses import adversarial_loss, loss_and_examples, universal_accuracy
from pinchpoint.evaluate.masking import masking_warnings
from pinchpoint.evaluate.model_checks import doubts_of, not_asked, one_answer
from pinchpoint.evaluate.named_attacks import Samples, attack_sheet
from pinchpoint.evaluate.robust_accuracy import Progress, Watcher, robust_accuracy
from pinchpoint.evaluate.transfer import access, transfer_matrix, universal_transfer
from pinchpoint.evaluate.verdict import Verdict, save_examples, within

__all__ = [
    "Attack",
    "Progress",
    "Samples",
    "Verdict",
    "Watcher",
    "access",
    "accuracy",
    "adversarial_loss",
    "attack_certified",
    "attack_sheet",
    "cross_entropy_loss",
    "default_attacks",
    "doubts_of",
    "logits_of",
    "loss_and_examples",
    "masking_warnings",
    "not_asked",
    "one_answer",
    "robust_accuracy",
    "robust_curve",
    "save_examples",
    "smallest_eps",
    "transfer_matrix",
    "universal_accuracy",
    "universal_transfer",
    "within",
]
