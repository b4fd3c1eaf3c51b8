"""From a trace to a map of what mattered, and from a map to a score: explaining a prediction, and judging that."""

from labkit.explain.ablation import head_effects, without
from labkit.explain.attention import class_row, class_rows, gradient_rollout, rollout, rollout_matrix
from labkit.explain.attribution import integrated_gradients, occlusion, patch_ablation, smooth_grad
from labkit.explain.controls import CONTROLS
from labkit.explain.gradcam import grad_cam
from labkit.explain.heads import head_measures, head_similarity, head_table
from labkit.explain.lens import logit_lens
from labkit.explain.methods import METHODS
from labkit.explain.outliers import outliers
from labkit.explain.relevance import relevance
from labkit.explain.removal import deletion_insertion, road
from labkit.explain.sanity import randomization
from labkit.explain.scores import judge

__all__ = [
    "CONTROLS",
    "METHODS",
    "class_row",
    "class_rows",
    "deletion_insertion",
    "grad_cam",
    "gradient_rollout",
    "head_effects",
    "head_measures",
    "head_similarity",
    "head_table",
    "integrated_gradients",
    "judge",
    "logit_lens",
    "occlusion",
    "outliers",
    "patch_ablation",
    "randomization",
    "relevance",
    "road",
    "rollout",
    "rollout_matrix",
    "smooth_grad",
    "without",
]
