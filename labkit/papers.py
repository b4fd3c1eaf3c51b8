"""The papers whose ideas the code holds: title, year, family and, in one line of ours, the idea.

`cite("S207")` is how a lesson, a figure or `labkit.show` names a paper; the year is the first version's.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.errors import LabkitError, closest


@dataclass(frozen=True)
class Paper:
    id: str  # the catalogue id
    title: str
    year: int
    family: str
    idea: str


PAPERS = (
    Paper(
        "S007",
        "IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers",
        2021,
        "token-reduction",
        "Draw which patches to keep and make likelier what was right with few; what was kept explains the answer.",
    ),
    Paper(
        "S011",
        "Adaptive Token Sampling For Efficient Vision Transformers",
        2021,
        "token-reduction",
        "Lay the scores end to end and sample at equal distances: each image keeps as many tokens as it needs.",
    ),
    Paper(
        "S015",
        "I-ViT: Integer-only Quantization for Efficient Vision Transformer Inference",
        2022,
        "quantization",
        "Rescale, softmax, GELU and LayerNorm with integers only: shifts stand in for exponentials.",
    ),
    Paper(
        "S017",
        "CvT: Introducing Convolutions to Vision Transformers",
        2021,
        "attention",
        "Convolutions make the tokens and their q, k, v, so that no position is needed.",
    ),
    Paper(
        "S021",
        "LiT: Delving into a Simplified Linear Diffusion Transformer for Image Generation",
        2025,
        "attention",
        "A few wide heads of ReLU linear attention plus a depthwise convolution take over a softmax model's weights.",
    ),
    Paper(
        "S028",
        "I&S-ViT: An Inclusive & Stable Method for Pushing the Limit of Post-Training ViTs Quantization",
        2023,
        "quantization",
        "Shift, then take logarithms of attention; calibrate a grid per channel, then fold it into one.",
    ),
    Paper(
        "S029",
        "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
        2022,
        "token-reduction",
        "The class token's attention says which patches matter; keep those and melt the rest into one token.",
    ),
    Paper(
        "S035",
        "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
        2023,
        "attention",
        "Every head reads its own slice of the channels and what the head before it found.",
    ),
    Paper(
        "S040",
        "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers",
        2024,
        "token-reduction",
        "Merge tokens that are alike, that nobody looks at and that are still small: a product of three criteria.",
    ),
    Paper(
        "S041",
        "AdaLog: Post-Training Quantization for Vision Transformers with Adaptive Logarithm Quantizer",
        2024,
        "quantization",
        "Search the base of a logarithmic grid; a shift and a small table decode it.",
    ),
    Paper(
        "S046",
        "InternLM-XComposer2-4KHD: A Pioneering Large Vision-Language Model Handling Resolutions from 336 "
        "Pixels to 4K HD",
        2024,
        "patching",
        "Cut a large image into tiles of the size a model knows, in its own proportions, and add a thumbnail.",
    ),
    Paper(
        "S053",
        "Stretching Each Dollar: Diffusion Training from Scratch on a Micro-Budget",
        2024,
        "token-reduction",
        "Mix all patches lightly before most are dropped in training: those that go have told those that stay.",
    ),
    Paper(
        "S056",
        "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design",
        2024,
        "attention",
        "One head mixes a slice of the channels; the others pass by and meet it in the projection.",
    ),
    Paper(
        "S065",
        "Transformer in Transformer",
        2021,
        "architecture",
        "A small transformer reads the words inside each patch and adds what it read to the patch's token.",
    ),
    Paper(
        "S066",
        "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers",
        2023,
        "token-reduction",
        "Attention is a graph; a token matters if tokens that matter look at it.",
    ),
    Paper(
        "S070",
        "MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer",
        2024,
        "quantization",
        "Centre and smooth the channels; give bits greedily to the layer that profits most.",
    ),
    Paper(
        "S079",
        "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification",
        2021,
        "attention",
        "Two branches with small and large patches exchange what they know through their class tokens alone.",
    ),
    Paper(
        "S083",
        "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        2021,
        "attention",
        "Attend inside windows, shift them every other block, and merge patches two by two.",
    ),
    Paper(
        "S084",
        "NoisyQuant: Noisy Bias-Enhanced Post-Training Activation Quantization for Vision Transformers",
        2022,
        "quantization",
        "Fixed noise before rounding, taken off again by the bias: the error is step²/12 everywhere.",
    ),
    Paper(
        "S089",
        "ResFormer: Scaling ViTs with Multi-Resolution Training",
        2022,
        "position",
        "Train on several sizes at once, with one position that stretches with the image and one that does not.",
    ),
    Paper(
        "S092",
        "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
        2023,
        "architecture",
        "Fold the mean out of the weights and LayerNorm becomes RMSNorm: the same function for less work.",
    ),
    Paper(
        "S094",
        "RMT: Retentive Networks Meet Vision Transformers",
        2023,
        "attention",
        "Attention fades with the Manhattan distance, so it can go along the rows and then the columns.",
    ),
    Paper(
        "S101",
        "Your Transformer May Not be as Powerful as You Expect",
        2022,
        "position",
        "No bias inside a softmax can tell a place; a learned gain for each displacement after it can.",
    ),
    Paper(
        "S104",
        "CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention",
        2021,
        "attention",
        "Windows in turn with groups spread over the whole grid, and a small network for the bias.",
    ),
    Paper(
        "S105",
        "Toward a Deeper Understanding: RetNet Viewed through Convolution",
        2023,
        "position",
        "Multiply the scores by a few Gaussians of the distance, at two learned numbers each.",
    ),
    Paper(
        "S109",
        "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows",
        2021,
        "attention",
        "Half of the heads see upright stripes and half level ones: together a cross.",
    ),
    Paper(
        "S122",
        "MetaFormer Baselines for Vision",
        2022,
        "mixer",
        "Even no mixing or a frozen random matrix works in attention's place; StarReLU is the cheap bend.",
    ),
    Paper(
        "S123",
        "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
        2021,
        "patching",
        "Cut into overlapping squares, attend a little, lay the tokens out as an image, and cut again.",
    ),
    Paper(
        "S125",
        "BiFormer: Vision Transformer with Bi-Level Routing Attention",
        2023,
        "attention",
        "A region of queries picks a few regions of keys, then attends to their tokens densely.",
    ),
    Paper(
        "S132",
        "UniFormer: Unifying Convolution and Self-attention for Visual Recognition",
        2022,
        "mixer",
        "One form, two affinities: a learned local kernel early, contents late.",
    ),
    Paper(
        "S133",
        "TiC: Exploring Vision Transformer in Convolution",
        2023,
        "attention",
        "Attention inside a window that slides as a convolution's, so that any image size works.",
    ),
    Paper(
        "S134",
        "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting",
        2023,
        "patching",
        "Make each variate's whole series one token, and attend across variates instead of across time.",
    ),
    Paper(
        "S143",
        "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
        2021,
        "attention",
        "Every token asks one key for each square of tokens, so that the score map is narrow.",
    ),
    Paper(
        "S146",
        "MetaFormer Is Actually What You Need for Vision",
        2021,
        "mixer",
        "Averaging the neighbours replaces attention; the block around it does the work.",
    ),
    Paper(
        "S150",
        "DCT-HistoTransformer: Efficient Lightweight Vision Transformer with DCT Integration for "
        "histopathological image analysis",
        2024,
        "token-reduction",
        "Only the low frequencies of the tokens attend to each other; the inverse transform answers every token.",
    ),
    Paper(
        "S165",
        "Vcc: Scaling Transformers to 128K Tokens or More by Prioritizing Important Tokens",
        2023,
        "token-reduction",
        "Cut the image finely where the class token looks, coarsely elsewhere; run the block on the parts, then undo.",
    ),
    Paper(
        "S169",
        "Restormer: Efficient Transformer for High-Resolution Image Restoration",
        2021,
        "attention",
        "Channels attend to channels after a depthwise convolution, so that the cost is linear in the pixels.",
    ),
    Paper(
        "S171",
        "Blockwise Compression of Transformer-based Models without Retraining",
        2023,
        "quantization",
        "One scale for each small block, so an outlier spoils only its own; functions become tables.",
    ),
    Paper(
        "S180",
        "Patch Is Not All You Need",
        2023,
        "patching",
        "Each map of a small convolutional network is one token: tokens are patterns, not places.",
    ),
    Paper(
        "S182",
        "Going deeper with Image Transformers",
        2021,
        "architecture",
        "A learned gain per channel, near zero at first, lets deep stacks train; the class token comes late.",
    ),
    Paper(
        "S183",
        "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More",
        2025,
        "patching",
        "A patch is a lossy code: smaller ones lose less and cost more, down to one pixel.",
    ),
    Paper(
        "S187",
        "Multiscale Vision Transformers",
        2021,
        "attention",
        "q, k and v are pooled inside the attention; keys from strides, queries to shrink the image.",
    ),
    Paper(
        "S188",
        "Efficient Online Inference of Vision Transformers by Training-Free Tokenization",
        2024,
        "token-reduction",
        "Group patches by their pixels before the first block: drop flat ones, merge those near the same visual word.",
    ),
    Paper(
        "S192",
        "Finite Scalar Quantization: VQ-VAE Made Simple",
        2023,
        "quantization",
        "Bound a number by tanh and round it to a few levels: a codebook that nobody has to learn.",
    ),
    Paper(
        "S193",
        "Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding",
        2021,
        "attention",
        "A gain for each displacement is a Toeplitz matrix, which the FFT multiplies into linear attention.",
    ),
    Paper(
        "S200",
        "Multi Resolution Analysis (MRA) for Approximate Self-Attention",
        2022,
        "attention",
        "Blocks of the score map are met as means, and the largest are computed pair by pair.",
    ),
    Paper(
        "S203",
        "Training data-efficient image transformers & distillation through attention",
        2020,
        "distillation",
        "A second token with its own head learns from a teacher while the class token learns from labels.",
    ),
    Paper(
        "S204",
        "Scalable Vision Transformers with Hierarchical Pooling",
        2021,
        "token-reduction",
        "Max-pool the token sequence between stages and read the mean of the last tokens.",
    ),
    Paper(
        "S207",
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        2020,
        "architecture",
        "Cut the image into squares, treat each square as a word, and use a plain transformer.",
    ),
    Paper(
        "S208",
        "Rethinking and Improving Relative Position Encoding for Vision Transformer",
        2021,
        "position",
        "Put displacements into buckets and let queries, keys and values meet an encoding of each bucket.",
    ),
    Paper(
        "S212",
        "Fourier Transformer: Fast Long Range Modeling by Removing Sequence Redundancy with FFT Operator",
        2023,
        "token-reduction",
        "Keep the low frequencies along the tokens and go back at the shorter length.",
    ),
    Paper(
        "S226",
        "Three things everyone should know about Vision Transformers",
        2022,
        "architecture",
        "Blocks may run side by side, tuning only attention is enough, and a patch stem may be an MLP.",
    ),
    Paper(
        "S227",
        "LookHere: Vision Transformers with Directed Attention Generalize and Extrapolate",
        2024,
        "position",
        "Every head looks one way and pays for distance, so a larger image changes nothing it knew.",
    ),
    Paper(
        "S243",
        "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration",
        2024,
        "quantization",
        "Take the mean off the keys, then compute the scores with 8-bit integers.",
    ),
    Paper(
        "S250",
        "Escaping the Big Data Paradigm with Compact Transformers",
        2021,
        "architecture",
        "Convolutions make the tokens and a learned weighted mean reads them, so little data is enough.",
    ),
    Paper(
        "S254",
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        2022,
        "quantization",
        "Round weight columns in order; those still to come make up for each rounding error.",
    ),
    Paper(
        "S256",
        "Beyond Grids: Exploring Elastic Input Sampling for Vision Transformers",
        2023,
        "patching",
        "Take patches from any boxes, and compute each position from the corners of its box.",
    ),
    Paper(
        "S259",
        "Subobject-level Image Tokenization",
        2024,
        "patching",
        "Pool each segment of the image into one token that knows its place and its size.",
    ),
    Paper(
        "S266",
        "ViTAR: Vision Transformer with Any Resolution",
        2024,
        "position",
        "Learn places only roughly, and merge any grid to one size before the blocks.",
    ),
    Paper(
        "S269",
        "On Learning the Transformer Kernel",
        2021,
        "attention",
        "The kernel of linear attention is learned through the distribution of its random frequencies.",
    ),
    Paper(
        "S276",
        "Combiner: Full Attention Transformer with Sparse Computation Cost",
        2021,
        "attention",
        "Every pair meets: within a span directly, elsewhere by a summary that the span makes of itself.",
    ),
    Paper(
        "S279",
        "PYRA: Parallel Yielding Re-Activation for Training-Inference Efficient Task Adaptation",
        2024,
        "adaptation",
        "Before a pair is merged, the token that moves is re-scaled by a learned weight of rank one.",
    ),
    Paper(
        "S282",
        "Training Transformers with 4-bit Integers",
        2023,
        "quantization",
        "Rotate outliers away, split gradients into two 4-bit halves, sample their rows by leverage.",
    ),
    Paper(
        "S285",
        "Conditional Positional Encodings for Vision Transformers",
        2021,
        "position",
        "A depthwise convolution between blocks tells position, because its zero padding marks the border.",
    ),
    Paper(
        "S289",
        "RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via Scale "
        "Reparameterization",
        2024,
        "quantization",
        "Learn two clipping ends per channel, then fold all channels into one grid.",
    ),
    Paper(
        "S292",
        "DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware Post-Training Quantization for Vision Transformers",
        2024,
        "quantization",
        "Levels that crowd towards one by a tangent; the median scale, which no outlier moves.",
    ),
    Paper(
        "S300",
        "S2AFormer: Strip Self-Attention for Efficient Vision Transformer",
        2025,
        "attention",
        "Fewer keys, compared with the queries in fewer channels.",
    ),
    Paper(
        "S307",
        "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers",
        2023,
        "attention",
        "A coarse guess names the keys of each query; exact attention runs over those links.",
    ),
    Paper(
        "S308",
        "Channel Vision Transformers: An Image Is Worth C x 16 x 16 Words",
        2023,
        "patching",
        "One token for each patch of each channel, trained on random subsets of the channels.",
    ),
    Paper(
        "S311",
        "RePaViT: Scalable Vision Transformer Acceleration via Structural Reparameterization on Feedforward "
        "Network Layers",
        2025,
        "weight-compression",
        "Some hidden channels skip the activation; after training their linear path folds into one matrix.",
    ),
    Paper(
        "S312",
        "DiffRate : Differentiable Compression Rate for Efficient Vision Transformers",
        2023,
        "token-reduction",
        "Learn each block's count: a softmax over counts gives every rank a probability, a straight-through mask cuts.",
    ),
    Paper(
        "S317",
        "When Do We Not Need Larger Vision Models?",
        2024,
        "patching",
        "Run a small model on tiles of an enlarged image and put the features of all scales side by side.",
    ),
    Paper(
        "S320",
        "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers",
        2022,
        "quantization",
        "Calibrate a grid for each channel, then fold the scales into the norm and the layer behind it.",
    ),
    Paper(
        "S322",
        "Accelerating Transformers with Spectrum-Preserving Token Merging",
        2024,
        "token-reduction",
        "A token with many neighbours like itself can be merged; one that stands alone must stay.",
    ),
    Paper(
        "S325",
        "Towards Scalable Foundation Model for Multi-modal and Hyperspectral Geospatial Data",
        2025,
        "attention",
        "The Kronecker product of an attention among places and one among channels, never written down.",
    ),
    Paper(
        "S329",
        "APHQ-ViT: Post-Training Quantization with Average Perturbation Hessian Based Reconstruction for Vision "
        "Transformers",
        2025,
        "quantization",
        "Nudge the outputs to see which matter; rebuild the MLP with ReLU where it matters most.",
    ),
    Paper(
        "S330",
        "ChAda-ViT : Channel Adaptive Attention for Joint Representation Learning of Heterogeneous Microscopy Images",
        2023,
        "patching",
        "Pad the channels that an image lacks, and let no token attend to them.",
    ),
    Paper(
        "S346",
        "ConvShareViT: Enhancing Vision Transformers with Convolutional Attention Mechanisms for Free-Space Optical "
        "Accelerators",
        2025,
        "attention",
        "A linear layer is a convolution whose kernel is as large as the token's picture, so a lens can compute it.",
    ),
    Paper(
        "S348",
        "TransNeXt: Robust Foveal Visual Perception for Vision Transformers",
        2023,
        "attention",
        "Neighbours and a pooled image compete in one softmax.",
    ),
    Paper(
        "S349",
        "Reviving Shift Equivariance in Vision Transformers",
        2023,
        "patching",
        "Begin the grid at the phase with the largest norm, so a shift moves the tokens and changes none.",
    ),
    Paper(
        "S350",
        "TrAct: Making First-layer Pre-Activations Trainable",
        2024,
        "patching",
        "Step the first layer's activations, then take the weights that come nearest: contrast no longer counts.",
    ),
    Paper(
        "S351",
        "Revisiting the Integration of Convolution and Attention for Vision Backbone",
        2024,
        "attention",
        "Attention among a few slots that tokens are softly sorted into, beside a convolution.",
    ),
    Paper(
        "S354",
        "Self-slimmed Vision Transformer",
        2021,
        "token-reduction",
        "A learned softmax blends n tokens into m, and a second module learns to give the teacher's n tokens back.",
    ),
    Paper(
        "S371",
        "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
        2021,
        "attention",
        "A gate per head blends content with a place; it begins as a convolution and may leave it.",
    ),
    Paper(
        "S374",
        "UniViTAR: Unified Vision Transformer with Native Resolution",
        2025,
        "patching",
        "Pack images of any size into one sequence and let each attend only to itself.",
    ),
    Paper(
        "S383",
        "On the Efficiency of Convolutional Neural Networks",
        2024,
        "architecture",
        "Latency is operations / (peak x efficiency), and the bytes that move say where the efficiency goes.",
    ),
    Paper(
        "S389",
        "BiViT: Extremely Compressed Binary Vision Transformer",
        2022,
        "quantization",
        "One bit each: weights keep a sign and a scale, attention keeps what is near its row's largest.",
    ),
    Paper(
        "S391",
        "DiT: Efficient Vision Transformers with Dynamic Token Routing",
        2023,
        "token-reduction",
        "Every token has a gate per path: a closed one leaves it as it is and costs nothing; a budget teaches it.",
    ),
)


def find(id: str) -> Paper:
    """The facts about one paper, by its catalogue id."""
    for paper in PAPERS:
        if paper.id == id:
            return paper
    hint = closest(id, [paper.id for paper in PAPERS])
    raise LabkitError(f'No paper "{id}" is described in labkit/papers.py; add it there.{hint}')


def cite(id: str) -> str:
    """`'"Going deeper with Image Transformers", 2021 (S182)'`: title, year and catalogue id."""
    paper = find(id)
    return f'"{paper.title}", {paper.year} ({paper.id})'
