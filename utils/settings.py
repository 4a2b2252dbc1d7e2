"""Every setting of every YAML file and flag, one frozen dataclass per section.

A key is written `section.key` in YAML and `--key` on the command line. `TIER` says which file may set a section:
`model` (--config), `algorithm` (--algo_config), `task` (--task) or `flag` (command line only).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from utils.boards import BOARDS, missing
from utils.config import setting


@dataclass(frozen=True)
class RunSettings:
    """What every stage understands."""

    TIER: ClassVar[str] = "flag"
    seed: int = setting(0, "seed of every random stream", minimum=0, maximum=2**32 - 1)
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    output_dir: str = setting("", "folder of this stage (default: the newest run's)")
    output_root: str = setting("outputs", "folder of the runs")
    overwrite: bool = setting(False, "replace a finished stage")
    resume: bool = setting(False, "continue an unfinished stage from its last complete checkpoint")
    if_needed: bool = setting(False, "keep a stage that finished with equal settings and inputs, else continue it")
    quick_test: bool = setting(False, "few records and steps: does everything run?")
    dry_run: bool = setting(False, "print the resolved settings and the plan, then stop")
    quiet: bool = setting(False, "print only warnings, errors and the result")
    report_to: str = setting("none", "where curves go beside logs/train.jsonl", choices=BOARDS)

    def __post_init__(self) -> None:
        if line := missing(self.report_to):
            raise ValueError(line)


@dataclass(frozen=True)
class OnlineRunSettings(RunSettings):
    """What every stage understands, and how many processes and how long 05, 06 and 07 are."""

    num_processes: int = setting(1, "processes that share the work of each step, with a core or a GPU each", minimum=1)
    fsdp: bool = setting(False, "each process holds a share of policy, reference and optimiser (FSDP2; without LoRA)")
    max_minutes: float = setting(0.0, "the step that ends after so many minutes is the last (0: no limit)", minimum=0.0)


@dataclass(frozen=True)
class TaskSettings:
    """What is learned: data, prompt, reward."""

    TIER: ClassVar[str] = "task"
    name: str = setting("finqa_mini", "name of the task", flag="")
    kind: str = setting("finqa", "which Task class serves it", choices=("finqa", "sentiment", "genalign"))
    source: str = setting("generated", "made from data_seed, or read from data_root", choices=("generated", "files"))
    data_root: str = setting("datasets/finqa_mini", "folder of {train,dev,test}.json in the kind's schema")
    data_seed: int = setting(0, "seed of the generated data, and of --split_proportions", minimum=0)
    max_prompt_tokens: int = setting(768, "token budget of a prompt; evidence is chosen to fit", minimum=64)
    context: str = setting(
        "full",
        "evidence in prompts: the whole page, the best units by the retriever, or the labelled ones (an upper bound)",
        choices=("full", "retrieved", "gold"),
    )
    evidence_units: int = setting(5, "sentences and table rows in the prompts of context retrieved", minimum=1)
    icl_examples: int = setting(4, "texts of the pool that a prompt of genalign shows", minimum=0)
    icl_strategy: str = setting(
        "balanced",
        "how they are chosen: at random, each label equally often, or each unlike those before",
        choices=("random", "balanced", "diverse"),
    )
    reward_profile: str = setting("strict", "which reward is trained and reported", choices=("strict", "seed"))


@dataclass(frozen=True)
class ModelSettings:
    """The base model and its numbers."""

    TIER: ClassVar[str] = "model"
    name: str = setting("assets/llama-tiny", "folder or hub id of the base model", flag="model")
    type: str = setting("llama", "transformers model type")
    architecture: str = setting("LlamaForCausalLM", "transformers class, checked at loading")
    hidden_size: int = setting(0, "width, checked at loading (0: not checked)", minimum=0)
    num_layers: int = setting(0, "layers, checked at loading (0: not checked)", minimum=0)
    vocab_size: int = setting(0, "vocabulary, checked at loading (0: not checked)", minimum=0)
    precision: str = setting(
        "fp32",
        "arithmetic of the forward pass (weights train in fp32); auto: whichever is the faster on this machine",
        choices=("fp32", "bf16", "auto"),
    )
    activation_checkpointing: bool = setting(
        False, "compute activations again in the backward pass: less memory, a third more time"
    )
    prompt_style: str = setting(
        "plain", "prompt as bare text, or as a user's turn in the model's chat template", choices=("plain", "chat")
    )
    load_in_4bit: bool = setting(False, "hold the base's linear layers in 4 bits; needs an adapter to train")
    load_in_8bit: bool = setting(False, "hold the base's linear layers in 8 bits; needs an adapter to train")

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("give one of load_in_4bit and load_in_8bit")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) through peft."""

    TIER: ClassVar[str] = "model"
    use_lora: bool = setting(False, "train adapters instead of all weights")
    r: int = setting(32, "rank", minimum=1)
    alpha: int = setting(64, "scale: the update is multiplied by alpha / r", minimum=1)
    dropout: float = setting(0.0, "dropout on the adapters' input", minimum=0.0, maximum=0.9)
    target_modules: tuple[str, ...] = setting(("q_proj", "k_proj", "v_proj", "o_proj"), "layers that get an adapter")


@dataclass(frozen=True)
class TrainingSettings:
    """Supervised fine-tuning (03)."""

    TIER: ClassVar[str] = "model"
    epochs: int = setting(30, "passes over the training records at most", minimum=1)
    patience: int = setting(3, "evaluations without a rise in accuracy before stopping (0: never)", minimum=0)
    batch_size: int = setting(16, "records per micro-batch", minimum=1)
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimiser step", minimum=1)
    learning_rate: float = setting(5e-4, "peak learning rate of AdamW", minimum=0.0)
    warmup_steps: int = setting(10, "optimiser steps of linear warm-up", minimum=0)
    weight_decay: float = setting(0.01, "decoupled weight decay", minimum=0.0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", minimum=0.0)
    max_length: int = setting(1024, "longest prompt + target in tokens; longer records are refused", minimum=16)


@dataclass(frozen=True)
class ValidationSettings:
    """Measurements during training. 05, 06 and 07 take eval_records and keep_checkpoints of these: they count steps of
    their own (algorithm.eval_every)."""

    TIER: ClassVar[str] = "model"
    eval_steps: int = setting(25, "optimiser steps of 03 and 09 between evaluations", minimum=1)
    save_steps: int = setting(25, "optimiser steps of 03 and 09 between checkpoints", minimum=1)
    logging_steps: int = setting(5, "optimiser steps of 03 and 09 between log lines", minimum=1)
    eval_records: int = setting(300, "validation records used (0: all)", minimum=0)
    keep_checkpoints: int = setting(1, "newest step_N folders kept beside best and final (0: all)", minimum=0)


@dataclass(frozen=True)
class RLSettings:
    """What online RL takes from the model's side: rates and sizes that scale with it."""

    TIER: ClassVar[str] = "model"
    learning_rate: float = setting(1e-4, "peak learning rate of AdamW in 05-07", minimum=0.0)
    critic_learning_rate: float = setting(1e-3, "peak learning rate of AdamW for the critic of 05", minimum=0.0)
    micro_batch_tokens: int = setting(8192, "packed tokens per forward-backward pass", minimum=64)
    importance_cap: float = setting(
        2.0, "largest weight of a token whose back end drew it with another probability than the policy's", minimum=1.0
    )
    auto_batch: bool = setting(False, "micro_batch_tokens becomes the largest that fits this device, by the plan")


@dataclass(frozen=True)
class GenerationSettings:
    """Sampling of stage 04; back end and batch sizes of every generation."""

    TIER: ClassVar[str] = "model"
    backend: str = setting("native", "what generates", choices=("native", "transformers", "vllm"))
    vllm_server: str = setting("", "address of a vLLM server, http://host:port (default: vLLM in this process)")
    vllm_memory: float = setting(0.3, "share of the GPU's memory for vLLM in this process", minimum=0.05, maximum=0.95)
    max_new_tokens: int = setting(96, "longest completion in tokens", minimum=1)
    num_candidates: int = setting(4, "completions per prompt in stage 04", minimum=1)
    temperature: float = setting(0.8, "softmax temperature in stage 04", minimum=0.0)
    top_p: float = setting(0.9, "nucleus mass in stage 04", minimum=0.0, maximum=1.0)
    tokens_per_batch: int = setting(32768, "prompt + completion tokens generated at once", minimum=64)

    def __post_init__(self) -> None:
        if self.vllm_server and self.backend != "vllm":
            raise ValueError(f"vllm_server has no effect on backend {self.backend}; give backend vllm too")
        if self.vllm_server and not self.vllm_server.startswith(("http://", "https://")):
            raise ValueError(f"vllm_server must be an address like http://host:port, got {self.vllm_server!r}")
        if self.backend == "vllm" and not self.vllm_server and find_spec("vllm") is None:
            raise ValueError(
                "backend vllm: the package vllm is not installed; ./setup.sh --extras vllm installs it, or name a "
                "server: --vllm_server http://host:port"
            )


@dataclass(frozen=True)
class PathSettings:
    """Where files lie."""

    TIER: ClassVar[str] = "model"
    data_dir: str = setting("", "folder of {train,val,test}.jsonl (default: this run's 01_preprocessing)")
    reward_spec: str = setting("", "reward_spec.yaml (default: this run's 02_rewards)")


@dataclass(frozen=True)
class RolloutSettings:
    """Sampling of online RL: log-probs must be those of the sampling policy, so the distribution is not warped."""

    TIER: ClassVar[str] = "algorithm"
    prompts_per_step: int = setting(32, "prompts per rollout", minimum=1)
    temperature: float = setting(1.0, "must be 1", minimum=1.0, maximum=1.0)
    top_p: float = setting(1.0, "must be 1", minimum=1.0, maximum=1.0)
    top_k: int = setting(0, "must be 0 (off)", minimum=0, maximum=0)


@dataclass(frozen=True)
class OnlineSettings:
    """What 05, 06 and 07 have in common: how many steps, and how an update is made."""

    TIER: ClassVar[str] = "algorithm"
    steps: int = setting(30, "rollouts, each followed by its updates", minimum=1)
    mini_batches: int = setting(1, "optimiser steps per pass over a rollout", minimum=1)
    clip_range_high: float | None = setting(None, "ratio clipping above (default: clip_range)", minimum=0.0)
    warmup_steps: int = setting(2, "updates of linear warm-up", minimum=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", minimum=0.0)
    eval_every: int = setting(10, "steps between validations (and checkpoints)", minimum=1)
    patience: int = setting(0, "validations without a rise in accuracy before stopping (0: never)", minimum=0)


@dataclass(frozen=True)
class GRPOSettings(OnlineSettings):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300)."""

    METHOD: ClassVar[str] = "grpo"
    group_size: int = setting(8, "completions per prompt", minimum=2)
    use_batch_bonus: bool = setting(True, "divide by the batch's standard deviation instead of the group's")
    loss_type: str = setting("grpo", "how token losses are averaged", choices=("grpo", "dapo", "dr_grpo"))
    clip_range: float = setting(0.2, "ratio clipping below (and above, unless clip_range_high)", minimum=0.0)
    kl_coef: float = setting(0.02, "weight of the k3 KL to the reference, in the loss", minimum=0.0)
    mask_truncated_completions: bool = setting(False, "no loss on completions that were cut off (DAPO's filter)")
    num_iterations: int = setting(1, "passes over each rollout", minimum=1)


@dataclass(frozen=True)
class PPOSettings(OnlineSettings):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) of a language model."""

    METHOD: ClassVar[str] = "ppo"
    group_size: int = setting(8, "completions per prompt", minimum=1)
    critic: str = setting(
        "head",
        "what estimates values: a head on the policy's last layer whose loss leaves the policy alone, such a head "
        "whose loss trains the policy's trunk too, or a head on an adapter of its own (needs lora.use_lora)",
        choices=("head", "trunk", "adapter"),
    )
    gamma: float = setting(1.0, "discount per token", minimum=0.0, maximum=1.0)
    gae_lambda: float = setting(1.0, "lambda of GAE: 0 trusts the critic, 1 the rewards", minimum=0.0, maximum=1.0)
    whiten_advantages: bool = setting(True, "advantages of a rollout get mean 0 and deviation 1 over its tokens")
    loss_type: str = setting("dapo", "how token losses are averaged, as in 06", choices=("grpo", "dapo", "dr_grpo"))
    clip_range: float = setting(0.2, "ratio clipping below (and above, unless clip_range_high)", minimum=0.0)
    value_clip_range: float | None = setting(0.2, "values move at most this far from the old ones", minimum=0.0)
    value_coef: float = setting(0.5, "weight of the value loss", minimum=0.0)
    entropy_coef: float = setting(0.0, "weight of the entropy bonus, per nat", minimum=0.0)
    kl_coef: float = setting(0.05, "weight of the k1 KL to the reference, in each token's reward", minimum=0.0)
    kl_target: float | None = setting(None, "KL in nats per completion that steers kl_coef (none: fixed)", minimum=1e-9)
    kl_gain: float = setting(0.1, "how fast kl_coef follows kl_target", minimum=0.0, maximum=1.0)
    stop_kl: float | None = setting(
        None, "nats per token from the sampling policy that, seen in an epoch, make it the step's last", minimum=0
    )
    ppo_epochs: int = setting(4, "passes over each rollout", minimum=1)

    def __post_init__(self) -> None:
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError("kl_target multiplies kl_coef, and has no effect on kl_coef 0; give it a start, as 0.05")
        if self.stop_kl is not None and self.ppo_epochs == 1:
            raise ValueError("stop_kl has no effect on ppo_epochs 1: there is no epoch to leave out")


@dataclass(frozen=True)
class RLOOSettings(OnlineSettings):
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740)."""

    METHOD: ClassVar[str] = "rloo"
    num_samples: int = setting(4, "completions per prompt", minimum=1)
    baseline_type: str = setting(
        "loo",
        "what a sample's reward is compared with: the mean of its group's others, of its whole group, or nothing "
        "(plain REINFORCE)",
        choices=("loo", "mean", "none"),
    )
    clip_range: float = setting(0.2, "clipping of a completion's ratio below (and above)", minimum=0.0)
    kl_coef: float = setting(0.05, "weight of a completion's k1 KL to the reference, in its reward", minimum=0.0)
    num_iterations: int = setting(1, "passes over each rollout", minimum=1)
    variance_prompts: int = setting(16, "prompts of step 1 that measure gradients' variance (0: none)", minimum=0)

    def __post_init__(self) -> None:
        if self.num_samples < 2 and self.baseline_type != "none":
            raise ValueError(f"baseline_type {self.baseline_type} needs num_samples of at least 2")
        if self.variance_prompts == 1:
            raise ValueError("variance_prompts must be 0 or at least 2")


@dataclass(frozen=True)
class PairSettings:
    """Which candidates become preference pairs (08)."""

    TIER: ClassVar[str] = "flag"
    rules: tuple[str, ...] = setting(
        ("correct", "gold", "score"),
        "what is preferred: a correct candidate to a wrong one, the gold program where none is correct, a better score",
        choices=("correct", "gold", "score"),
    )
    min_margin: float = setting(0.05, "least reward by which the chosen answer beats the rejected one", minimum=0.0)
    pairs_per_prompt: int = setting(4, "pairs of one prompt at most", minimum=1)
    max_length_bias: float = setting(
        0.02,
        "most by which chosen answers are longer or shorter on average, as a share of the mean length",
        minimum=0.0,
    )
    held_out_share: float = setting(
        0.1, "share of the prompts whose pairs only measure (0: none)", minimum=0.0, maximum=0.9
    )


@dataclass(frozen=True)
class PreferenceSettings:
    """What preference training (09) takes from the model's side: rates and sizes that scale with it."""

    TIER: ClassVar[str] = "model"
    learning_rate: float = setting(5e-5, "peak learning rate of AdamW in 09", minimum=0.0)
    batch_size: int = setting(8, "pairs per micro-batch, each two sequences", minimum=1)
    gradient_accumulation_steps: int = setting(2, "micro-batches per optimiser step", minimum=1)
    weight_decay: float = setting(0.0, "decoupled weight decay", minimum=0.0)
    max_length: int = setting(1024, "longest prompt + answer in tokens; longer pairs are refused", minimum=16)


@dataclass(frozen=True)
class DPOSettings:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290)."""

    TIER: ClassVar[str] = "algorithm"
    METHOD: ClassVar[str] = "dpo"
    beta: float = setting(0.1, "how strongly the policy is held to the reference", minimum=1e-6)
    loss_type: str = setting(
        "sigmoid",
        "loss on the difference of log-ratios",
        choices=(
            "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
            "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop",
        ),
    )  # fmt: skip
    label_smoothing: float = setting(
        0.0, "share of pairs taken to be the wrong way round (robust, exo_pair, aot, aot_unpaired)", minimum=0.0,
        maximum=0.49,
    )  # fmt: skip
    sft_coef: float = setting(0.0, "weight of the chosen answers' mean negative log-likelihood", minimum=0.0)
    epochs: int = setting(1, "passes over the training pairs", minimum=1)
    patience: int = setting(0, "evaluations without a rise in accuracy before stopping (0: never)", minimum=0)
    warmup_steps: int = setting(10, "optimiser steps of linear warm-up", minimum=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", minimum=0.0)

    def __post_init__(self) -> None:
        smoothed = ("robust", "exo_pair", "aot", "aot_unpaired")
        if self.label_smoothing and self.loss_type not in smoothed:
            raise ValueError(
                f"label_smoothing has no effect on loss_type {self.loss_type}; it is for {', '.join(smoothed)}"
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0 (its paper takes 1e-3)")


SECTIONS: dict[str, type] = {
    "task": TaskSettings,
    "model": ModelSettings,
    "lora": LoraSettings,
    "training": TrainingSettings,
    "validation": ValidationSettings,
    "rl": RLSettings,
    "generation": GenerationSettings,
    "paths": PathSettings,
    "rollout": RolloutSettings,
    "preference": PreferenceSettings,
}
"""Sections of the shipped files, by name; `algorithm` is looked up in ALGORITHMS by the file's `method`."""

ALGORITHMS: dict[str, type] = {"grpo": GRPOSettings, "ppo": PPOSettings, "rloo": RLOOSettings, "dpo": DPOSettings}

TASK_MAY_ALSO_SET = ("generation.max_new_tokens", "algorithm.kl_coef")
"""Keys of other tiers that a task file may set, because they follow from the task."""
