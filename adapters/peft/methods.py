"""The PEFT methods that are served, one row a method: how its configuration is read, and what compiles it.

To serve a new method is to write its compiler and to add its row. Imports no torch: the API process reads this table
for its first check of an upload.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .keys import PREFIX, PREFIX_OF_PROMPTS

# Fields that describe the checkpoint or matter to training only, in every method.
_COMMON = frozenset(
    {"peft_type", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping"}
    | {"peft_version", "runtime_config"}
)
_TARGETS = frozenset({"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"})
# What any method on modules may train beside its own tensors; `auxiliary` compiles it for all of them.
_AUXILIARY = frozenset({"modules_to_save", "trainable_token_indices", "bias"})


@dataclass(frozen=True)
class Method:
    """One PEFT method, as the fields of adapter_config.json that its release 0.21 writes for it.

    compiler: `module.function` in this package, with the signature `compile.Compiler`. The module is imported when the
        first adapter of the method is compiled.
    reads: names of the fields that the compiler reads, separated by spaces.
    ignored: names of the fields that change nothing at inference.
    refused: name of a field to why an adapter that sets it is refused, and what to do instead.
    has_targets: whether the method is on modules of the base, so that `target_modules` says which.
    prefix: what its checkpoints have before the names of the base's modules.
    """

    compiler: str
    reads: str = ""
    ignored: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    has_targets: bool = True
    prefix: str = PREFIX

    @property
    def known(self) -> frozenset[str]:
        """Return the names of all fields that may be set."""
        targets = _TARGETS | _AUXILIARY if self.has_targets else frozenset()
        return _COMMON | targets | frozenset(self.reads.split()) | frozenset(self.ignored.split())


# Fields of methods that put virtual tokens before the prompt.
_VIRTUAL = "num_virtual_tokens token_dim num_layers num_transformer_submodules"
_TEXT_INIT = "num_attention_heads prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs"
_NO_SAVED = {
    "modules_to_save": "modules saved whole are not served beside virtual tokens; train with modules_to_save=None"
}


def _prompt_method(compiler: str, reads: str, ignored: str) -> Method:
    """Return the row of a method that puts virtual tokens before the prompt."""
    return Method(compiler, f"{_VIRTUAL} {reads}", ignored, _NO_SAVED, has_targets=False, prefix=PREFIX_OF_PROMPTS)


_LYCORIS_UNUSED = "rank_dropout module_dropout use_effective_conv2d init_weights"
# AdaLoRA's configuration has all fields of LoRA's.
_LORA_UNUSED = (
    "r use_rslora lora_dropout fan_in_fan_out init_lora_weights megatron_config megatron_core loftq_config eva_config "
    "corda_config lora_ga_config qalora_group_size alpha_pattern ensure_weight_tying"
)
_VARIANTS = (
    "use_dora velora_config alora_invocation_tokens use_qalora monteclora_config layer_replication lora_bias "
    "target_parameters use_bdlora arrow_config kasa_config"
)
_NO_LORA_VARIANTS = dict.fromkeys(_VARIANTS.split(), "AdaLoRA does not know it; train with LoRA")


METHODS: Mapping[str, Method] = {
    "LORA": Method(
        "lora.compile_lora",
        "r lora_alpha use_rslora rank_pattern alpha_pattern ensure_weight_tying use_dora lora_bias kasa_config "
        "velora_config monteclora_config alora_invocation_tokens use_qalora qalora_group_size use_bdlora arrow_config "
        "init_lora_weights target_parameters",
        "lora_dropout fan_in_fan_out megatron_config megatron_core loftq_config eva_config corda_config "
        "lora_ga_config merge_weights",
        {"layer_replication": "it changes the number of layers of the base"},
    ),
    "TRAINABLE_TOKENS": Method(
        "token_rows.compile_trainable_tokens", "token_indices target_modules", "init_weights", has_targets=False
    ),
    "UNILORA": Method(
        "probe_methods.compile_by_peft",
        "r proj_seed theta_d_length save_indices",
        "fan_in_fan_out unilora_dropout init_theta_d_bound init_weights",
    ),
    "TINYLORA": Method(
        "probe_methods.compile_by_peft",
        "r u weight_tying projection_seed save_projection",
        "fan_in_fan_out tinylora_dropout init_v_bound init_weights",
    ),
    "PSOFT": Method(
        "probe_methods.compile_by_peft",
        "r psoft_alpha ab_svd_init psoft_svd psoft_svd_lowrank_niter random_seed psoft_orth psoft_mag_a psoft_mag_b "
        "use_cayley_neumann num_cayley_neumann_terms cayley_neumann_eps",
        "fan_in_fan_out psoft_dropout init_weights",
    ),
    "ADAMSS": Method(
        "probe_methods.compile_by_peft",
        "r num_subspaces subspace_rank use_dynamic_rank svd_threshold random_seed",
        "init_weights use_asa asa_target_subspaces init_warmup final_warmup mask_interval asa_importance_beta "
        "asa_uncertainty_beta asa_schedule_exponent",
    ),
    "WAVEFT": Method(
        "probe_methods.compile_by_peft",
        "n_frequency scaling wavelet_family use_idwt random_loc_seed n_frequency_pattern proportional_parameters",
        "fan_in_fan_out init_weights",
    ),
    "RANDLORA": Method(
        "randlora.compile_randlora",
        "r projection_prng_key save_projection sparse very_sparse randlora_alpha",
        "fan_in_fan_out randlora_dropout init_weights",
    ),
    "FROD": Method(
        "probe_methods.compile_by_peft",
        "projection_prng_key save_projection sparse_rate regularization_alpha",
        "fan_in_fan_out frod_dropout init_weights progressbar runtime_offload_base_weight",
    ),
    "IA3": Method("diagonal.compile_ia3", "feedforward_modules", "fan_in_fan_out init_ia3_weights"),
    "BEFT": Method("diagonal.compile_beft", "", "init_weights"),
    "LN_TUNING": Method(
        "diagonal.compile_ln_tuning",
    ),
    "OFT": Method(
        "rotation.compile_oft",
        "r oft_block_size coft eps block_share use_cayley_neumann num_cayley_neumann_terms",
        "fan_in_fan_out module_dropout init_weights",
    ),
    "BOFT": Method(
        "boft.compile_boft",
        "boft_block_size boft_block_num boft_n_butterfly_factor",
        "fan_in_fan_out boft_dropout init_weights",
    ),
    "ROAD": Method("rotation.compile_road", "variant group_size", "init_weights"),
    "SHIRA": Method("sparse.compile_shira", "r", "mask_type random_seed fan_in_fan_out init_weights"),
    "SUPERTUNING": Method(
        "sparse.compile_supertuning",
        "sparsity select_top r lora_alpha save_precomputed_indices",
        "lora_dropout init_weights",
    ),
    "HIRA": Method("dense.compile_hira", "r", "rank_pattern fan_in_fan_out hira_dropout init_weights"),
    "FOURIERFT": Method(
        "spectral.compile_fourierft",
        "n_frequency n_frequency_pattern scaling random_loc_seed",
        "fan_in_fan_out init_weights",
    ),
    "C3A": Method("spectral.compile_c3a", "block_size block_size_pattern", "init_weights"),
    "GLORA": Method("glora.compile_glora", "r config_A_B config_C config_D_E", "init_weights"),
    "PROMPT_TUNING": _prompt_method("prompt.compile_soft_prompt", "", _TEXT_INIT),
    "MULTITASK_PROMPT_TUNING": _prompt_method(
        "prompt.compile_multitask_prompt",
        "num_tasks num_ranks",
        f"{_TEXT_INIT} prompt_tuning_init_state_dict_path prompt_tuning_init_task",
    ),
    "P_TUNING": _prompt_method(
        "prompt.compile_soft_prompt",
        "",
        "num_attention_heads encoder_reparameterization_type encoder_hidden_size encoder_num_layers encoder_dropout",
    ),
    "CPT": _prompt_method(
        "prompt.compile_cpt",
        "cpt_token_ids",
        "num_attention_heads cpt_mask cpt_tokens_type_mask opt_weighted_loss_type opt_loss_decay_factor "
        "opt_projection_epsilon opt_projection_format_epsilon tokenizer_name_or_path",
    ),
    "PREFIX_TUNING": _prompt_method(
        "prompt.compile_kv_prefix", "num_attention_heads", "init_weights encoder_hidden_size prefix_projection"
    ),
    "CARTRIDGE": _prompt_method("prompt.compile_kv_prefix", "num_attention_heads", "num_frozen_tokens"),
    "ADAPTION_PROMPT": Method(
        "adaption.compile_adaption_prompt", "target_modules adapter_len adapter_layers", has_targets=False
    ),
    "ADALORA": Method(
        "factored.compile_adalora",
        "init_r lora_alpha rank_pattern",
        f"{_LORA_UNUSED} target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step",
        _NO_LORA_VARIANTS,
    ),
    "DELORA": Method(
        "factored.compile_delora", "r rank_pattern", "delora_lambda lambda_pattern module_dropout init_weights"
    ),
    "GRALORA": Method(
        "factored.compile_gralora", "r hybrid_r alpha gralora_k", "gralora_dropout fan_in_fan_out init_weights"
    ),
    "POLY": Method("factored.compile_poly", "r n_tasks n_skills n_splits", "poly_type init_weights"),
    "LOHA": Method("products.compile_loha", "r alpha rank_pattern alpha_pattern", _LYCORIS_UNUSED),
    "LOKR": Method(
        "products.compile_lokr",
        "r alpha rank_pattern alpha_pattern decompose_both",
        f"{_LYCORIS_UNUSED} decompose_factor rank_dropout_scale",
    ),
    "VERA": Method(
        "shared.compile_vera",
        "r projection_prng_key save_projection",
        "vera_dropout d_initial fan_in_fan_out init_weights",
    ),
    "PVERA": Method(
        "shared.compile_pvera",
        "r projection_prng_key save_projection sample_at_inference",
        "pvera_dropout d_initial fan_in_fan_out init_weights generator_seed",
    ),
    "VBLORA": Method(
        "shared.compile_vblora",
        "r num_vectors vector_length topk save_only_topk_weights",
        "vblora_dropout fan_in_fan_out init_vector_bank_bound init_logits_std",
    ),
    "HRA": Method("on_base.compile_hra", "r apply_GS", "init_weights"),
    "DEFT": Method(
        "on_base.compile_deft",
        "r decomposition_method alpha para",
        "init_scale fan_in_fan_out deft_dropout init_weights",
    ),
    "PEANUT": Method("on_base.compile_peanut", "r depth act_fn scaling", "init_weights"),
    "OSF": Method("on_base.compile_osf", "", "effective_rank rank_pattern init_weights target_svd_config"),
    "MISS": Method("on_base.compile_miss", "r mini_r init_weights", "miss_dropout"),
    "BONE": Method("on_base.compile_miss", "r init_weights", "bone_dropout"),
}
