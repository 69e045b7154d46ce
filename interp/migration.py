"""What TransformerLens calls otherwise: whoever uses its name is told ours."""

from collections.abc import Mapping
from typing import Any

from interp.errors import InterpError

KEYWORDS = {
    "names_filter": "names= of run_with_cache: a name, a pattern with *, a predicate, or a list of these",
    "return_type": "model(tokens) for logits, model.loss(tokens) for the loss",
    "loss_per_token": "model.loss(tokens, per_token=True)",
    "prepend_bos": "model.to_tokens(text, prepend_bos=...)",
    "padding_side": "model.to_batch(texts), which pads on the left",
    "past_kv_cache": "past=",
    "past_key_values": "past=",
    "use_past_kv_cache": "use_cache=",
    "start_at_layer": "model.run_blocks(residual, frame, first=...), with frame from model.embed(tokens)",
    "remove_batch_dim": "cache[name][0]",
    "pos_slice": "pos=",
    "stop_at_eos": "stop_at_end=",
    "eos_token_id": "stop_at_end=, which stops at the tokenizer's end tokens",
    "do_sample": "temperature=0 for greedy tokens",
    "input": "the first argument, without a name",
    "verbose": "nothing: there is no progress bar",
    "fold_ln": "interp.process_weights(model, fold_ln=...)",
    "center_writing_weights": "interp.process_weights(model, center_writing_weights=...)",
    "center_unembed": "interp.process_weights(model, center_unembed=...)",
    "fold_value_biases": "interp.process_weights(model, fold_value_biases=...)",
    "hf_model": "HookedGPT.from_state_dict(hf_model.state_dict(), hf_model.config)",
    "torch_dtype": "dtype=",
    "model_name": "the first argument, without a name",
    "fwd_hooks": "model.run_with_hooks(tokens, fwd_hooks=...), or: with model.hooks(fwd_hooks):",
    "bwd_hooks": "with model.hooks(bwd_hooks=...):",
    "reset_hooks_end": "nothing: hooks are gone after the call",
    "clear_contexts": "nothing: hooks keep no state",
    "incl_bwd": "with model.hooks(bwd_hooks=[(names, fn)]):, then loss.backward()",
}
"""A keyword there -> what to use here."""
ATTRIBUTES = {
    "cfg": "model.config",
    "reset_hooks": "nothing: hooks are gone when their with block, or the call, ends",
    "add_hook": "with model.hooks([(name, fn)]):",
    "add_perma_hook": "with model.hooks([(name, fn)]): around all that should see it",
    "remove_all_hook_fns": "nothing: hooks are gone when their with block ends",
    "hook_dict": "model.hook_points",
    "hook_points_dict": "model.hook_points",
    "mod_dict": "dict(model.named_modules())",
    "W_E_pos": "torch.cat([model.W_E, model.W_pos])",
    "QK": "interp.FactoredMatrix(model.W_Q, model.W_K.mT)",
    "OV": "interp.FactoredMatrix(model.W_V, model.W_O)",
    "tokens_to_residual_directions": "interp.residual.logit_direction(model, tokens)",
    "to_single_str_token": "model.to_str_tokens([token])[0]",
    "get_token_position": "model.to_str_tokens(text).index(token)",
    "load_and_process_state_dict": "HookedGPT.from_state_dict, then interp.process_weights",
    "process_weights_": "interp.process_weights(model), which gives a new model",
    "all_head_labels": "[f'L{l}H{h}' for l in range(n_layers) for h in range(n_heads)]",
    "all_composition_scores": "analyses.composition.composition(model)",
    "accumulated_bias": "interp.residual.decompose(model, cache, layer, heads=False): its bias components",
    "set_use_attn_result": "nothing: hook_result is computed when somebody listens",
    "set_use_split_qkv_input": "nothing: hook_q_input, hook_k_input, hook_v_input are computed when somebody listens",
    "set_use_hook_mlp_in": "nothing: hook_mlp_in is computed when somebody listens",
    "set_use_attn_in": "hook_q_input, hook_k_input, hook_v_input, computed when somebody listens",
    "set_ungroup_grouped_query_attention": "nothing: query heads read shared keys; see analyses.ablation",
    "from_pretrained_no_processing": "HookedGPT.from_pretrained, which processes nothing",
    "ln_final_": "model.ln_final",
    "n_params": "sum(p.numel() for p in model.parameters())",
    "sample_datapoint": "your own text",
    "cuda_": "model.to('cuda')",
}
"""An attribute of its models -> what to use here."""
CACHE = {
    "decompose_resid": "interp.residual.decompose(model, cache, layer, heads=False)",
    "stack_head_results": "interp.residual.decompose(model, cache, layer)",
    "accumulated_resid": "interp.residual.accumulated(model, cache)",
    "get_full_resid_decomposition": "interp.residual.decompose(model, cache)",
    "logit_attrs": "interp.residual.logit_attrs(model, cache, parts, answer, wrong)",
    "apply_ln_to_stack": "model.ln_final.share(parts, cache['ln_final.hook_scale'])",
    "stack_activation": "cache.stack(name)",
    "stack_neuron_results": "cache['post', layer][..., None] * model.W_out[layer]",
    "get_neuron_results": "cache['post', layer][..., None] * model.W_out[layer]",
    "compute_head_results": "run_with_cache(tokens, names='result')",
    "remove_batch_dim": "cache[name][0]",
    "add_batch_dim": "cache[name][None]",
    "cache_dict": "dict(cache)",
    "has_batch_dim": "nothing: activations always have it",
    "toggle_autodiff": "torch.set_grad_enabled",
}
"""A method of its cache -> what to use here."""


class UnknownName(InterpError, TypeError, AttributeError):
    """A keyword or attribute that is not there; where another tool has it, the message names ours."""


def refuse_keywords(where: str, given: Mapping[str, Any]) -> None:
    """Raises UnknownName for the first keyword of a call that takes none of these."""
    for name in given:
        hint = f"use {KEYWORDS[name]}" if name in KEYWORDS else ""
        raise UnknownName(f"{where} has no keyword {name!r}", hint or "see help() of it")


def unknown_attribute(kind: str, name: str, known: Mapping[str, str]) -> UnknownName:
    return UnknownName(f"{kind} has no attribute {name!r}", f"use {known[name]}")
