"""`FrozenLLM`: a base that never changes, reads each prompt once and continues after it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_runs import until_end
from torch import nn

from latent_reason.errors import ConfigError, DataError
from latent_reason.layers import rms_norm
from latent_reason.llm import FrozenLLM, layer_index
from latent_reason.losses import answer_loss

PROMPTS = ["sort: 3 1 2", "a", "reach 0110: abc d"]
DELIMITER = " Answer:"
LAYERS = ("embedding", "middle", "last")
LABELS = torch.tensor([[5, 6, 7, 0], [9, 0, -100, -100], [8, 8, 8, 0]])


def soft_rows(llm, num=3, length=2):
    return llm.embedding_norm * torch.randn(num, length, llm.hidden_size) / llm.hidden_size**0.5


def single(llm, prompt, rows, text):
    """Input embeddings of prompt, soft tokens and text in one unpadded row."""
    embed = llm.model.get_input_embeddings()
    ids = [torch.tensor([llm.tokenizer(t)["input_ids"]]) for t in (prompt, text)]
    return torch.cat((embed(ids[0]), rows, embed(ids[1])), dim=1)


# --- frozen ---------------------------------------------------------------------------------------


def test_wrapping_and_use_leave_the_base_as_it_was_and_causal(llm):
    model = copy.deepcopy(llm.model)
    ids = llm.encode(PROMPTS)["input_ids"]
    before, digest = model(ids).logits, FrozenLLM(model, llm.tokenizer, "again").sha256()
    wrapped = FrozenLLM(model, llm.tokenizer, "again")
    prompt = wrapped.read(**wrapped.encode(PROMPTS), layers=LAYERS)
    rows = soft_rows(wrapped).requires_grad_()
    answer_loss(wrapped.answer_logits(prompt, rows, DELIMITER, LABELS), LABELS).backward()
    wrapped.generate_after(prompt, rows, DELIMITER, max_new_tokens=3)
    assert rows.grad.abs().sum() > 0
    assert torch.equal(model(ids).logits, before)
    assert wrapped.sha256() == digest
    changed = ids.clone()
    changed[:, -1] = 20
    after = model(changed).logits
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert not torch.equal(after[:, -1], before[:, -1])


def test_train_keeps_eval_mode_and_no_parameter_asks_for_a_gradient(llm):
    holder = nn.ModuleList([llm, nn.Linear(1, 1)]).train()
    assert holder.training
    assert not any(module.training for module in llm.modules())
    assert not any(p.requires_grad for p in llm.parameters())


def test_sha256_sees_one_changed_bit_and_at_bf16_not_the_dtype(make_llm):
    llm = make_llm("llama").to(torch.bfloat16)
    rounded = llm.sha256(torch.bfloat16)
    assert llm.sha256() == rounded
    llm.float()
    exact = llm.sha256()
    assert exact != rounded
    assert llm.sha256(torch.bfloat16) == rounded
    weight = llm.model.model.norm.weight.data
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert llm.sha256() != exact
    assert make_llm("llama", seed=1).sha256(torch.bfloat16) != rounded


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "index"), [("embedding", 0), ("middle", 4), ("last", 6), (0, 0), (6, 6)]
)
def test_layer_index(layer, index):
    assert layer_index(layer, 6) == index


@pytest.mark.parametrize("layer", [-1, 3, True, "first"])
def test_a_layer_that_the_base_lacks_is_refused(make_llm, layer):
    llm = make_llm("llama")
    with pytest.raises(ConfigError, match=r"^read_layers: got .* from 0 to 2$"):
        llm.num_features(("last", layer))
    with pytest.raises(ConfigError, match="read_layers"):
        llm.read(**llm.encode(["a"]), layers=(layer,))


def test_states_are_the_normalised_hidden_states(llm):
    batch = llm.encode(PROMPTS[:1])
    states = llm.read(**batch, layers=LAYERS).states
    hidden = llm.model(**batch, output_hidden_states=True).hidden_states
    expected = torch.cat([rms_norm(hidden[i], 1e-6) for i in (0, 1, 2)], dim=-1)
    assert states.shape == (1, len(PROMPTS[0]), llm.num_features(LAYERS))
    torch.testing.assert_close(states, expected)


def test_padding_on_either_side_changes_no_state(llm, pad_left):
    batch = llm.encode(PROMPTS)
    right, left = (llm.read(**b, layers=LAYERS) for b in (batch, pad_left(batch)))
    for i, prompt in enumerate(PROMPTS):
        alone = llm.read(**llm.encode([prompt]), layers=LAYERS).states[0]
        torch.testing.assert_close(right.states[i, : len(prompt)], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left.states[i, -len(prompt) :], alone, atol=1e-5, rtol=1e-5)


def test_read_counts_prompts_and_keeps_no_graph(llm):
    prompt = llm.read(**llm.encode(PROMPTS), layers=LAYERS)
    assert llm.num_prompts == 3
    assert not prompt.states.requires_grad
    assert len(prompt.keys_values) == llm.num_layers == 2
    assert llm.read(**llm.encode(["a"])).states.shape == (1, 1, 0)
    assert llm.num_prompts == 4


def test_counting_prompts_does_not_compile_anew(make_llm):
    from torch._dynamo.testing import CompileCounter

    llm, counter = make_llm("llama"), CompileCounter()
    read, batch = torch.compile(llm.read, backend=counter), llm.encode(PROMPTS)
    states, counts = [], []
    for _ in range(3):
        states.append(read(**batch, layers=LAYERS).states)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] == counts[2] > 0
    assert llm.num_prompts == 9
    torch.testing.assert_close(states[2], llm.read(**batch, layers=LAYERS).states)


def test_encode_pads_on_the_right_and_decode_undoes_it(make_llm):
    llm = make_llm("llama")
    batch = llm.encode(["a 1", "b"])
    assert batch["input_ids"].tolist() == [[11, 38, 2], [12, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert llm.decode(torch.tensor([[38, 11, 38, 2, 0, 0]])) == ["a 1"]
    with pytest.raises(DataError, match="prompt 2: it is empty"):
        llm.encode(["a", ""])
    with pytest.raises(DataError, match="^prompts: got none, expected at least one$"):
        llm.encode([])


def test_prompts_beyond_the_context_or_the_embedding_are_refused(make_llm):
    llm = make_llm("gpt2")
    assert llm.encode(["a" * 128])["input_ids"].shape == (1, 128)
    with pytest.raises(DataError, match="^prompt 2: the prompt has 129 tokens; base tiny takes"):
        llm.encode(["a", "a" * 129])
    with pytest.raises(DataError, match="takes 128, 10 of them for slots and answer;"):
        llm.encode(["a" * 119], more=10)
    llm.tokenizer.add_special_tokens({"additional_special_tokens": ["<|unused|>"]})
    with pytest.raises(DataError, match="^prompt 1: it has special tokens that base tiny has no"):
        llm.encode(["a<|unused|>"])


# --- after the prompt -----------------------------------------------------------------------------

# The windows are shorter than the prompts. Gemma scales embeddings within its embedding layer,
# Granite scales them after it, and its logits too.
CONTINUED = [
    ("llama", {}),
    ("qwen3", {}),
    ("gpt2", {}),
    ("mistral", {"sliding_window": 4}),
    ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 4.0}),
    ("gemma3", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("kind", "config"), CONTINUED)
def test_answers_after_soft_tokens_equal_one_pass_over_everything(
    make_llm, pad_left, kind, config, side
):
    llm = make_llm(kind, **config)
    batch = llm.encode(PROMPTS)
    prompt = llm.read(**(batch if side == "right" else pad_left(batch)))
    rows = soft_rows(llm)
    logits = llm.answer_logits(prompt, rows, DELIMITER, LABELS)
    for i, text in enumerate(PROMPTS):
        answer = LABELS[i][LABELS[i] >= 0]
        before = single(llm, text, rows[i : i + 1], DELIMITER)
        embeds = torch.cat((before, llm.embed(answer[:-1])[None]), dim=1)
        expected = llm.model(inputs_embeds=embeds).logits[0, -len(answer) :]
        torch.testing.assert_close(logits[i, : len(answer)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "config"), CONTINUED)
def test_answer_logits_are_the_bases_own(make_llm, kind, config):
    llm = make_llm(kind, **config)
    logits = llm.answer_logits(llm.read(**llm.encode(PROMPTS)), None, DELIMITER, LABELS)
    for i, text in enumerate(PROMPTS):
        answer = LABELS[i][LABELS[i] >= 0]
        start = llm.tokenizer(text + DELIMITER)["input_ids"]
        ids = torch.tensor([[*start, *answer[:-1]]])
        expected = llm.model(ids).logits[0, len(start) - 1 :]
        torch.testing.assert_close(logits[i, : len(answer)], expected, atol=1e-4, rtol=1e-5)


def test_the_prompt_cache_is_shared_and_read_only(llm):
    prompt = llm.read(**llm.encode(PROMPTS))
    before = [(keys.clone(), values.clone()) for keys, values in prompt.keys_values]
    rows = soft_rows(llm)
    first = llm.answer_logits(prompt, rows, DELIMITER, LABELS)
    llm.generate_after(prompt, rows, DELIMITER, max_new_tokens=3, num_beams=2)
    llm.generate_after(prompt, None, DELIMITER, max_new_tokens=3)
    for old, new in zip(before, prompt.keys_values, strict=True):
        assert torch.equal(old[0], new[0])
        assert torch.equal(old[1], new[1])
    assert torch.equal(llm.answer_logits(prompt, rows, DELIMITER, LABELS), first)
    assert llm.num_prompts == 3


@pytest.mark.parametrize("delimiter", [DELIMITER, ":"])
@pytest.mark.parametrize("num_rows", [0, 2])
def test_greedy_generation_follows_the_teacher_forced_logits(llm, num_rows, delimiter):
    prompt = llm.read(**llm.encode(PROMPTS))
    rows = soft_rows(llm, length=num_rows) if num_rows else None
    tokens = llm.generate_after(prompt, rows, delimiter, max_new_tokens=6)
    forced = llm.answer_logits(prompt, rows, delimiter, tokens).argmax(dim=-1)
    for row, expected in zip(tokens, forced, strict=True):
        assert until_end(row) == expected.tolist()[: len(until_end(row))]
    assert len({tuple(row.tolist()) for row in tokens}) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_equals_the_bases_own_over_embeddings(llm, num_beams):
    prompt = llm.read(**llm.encode(PROMPTS))
    rows = soft_rows(llm)
    tokens = llm.generate_after(prompt, rows, DELIMITER, max_new_tokens=5, num_beams=num_beams)
    for i, text in enumerate(PROMPTS):
        embeds = single(llm, text, rows[i : i + 1], DELIMITER)
        alone = llm.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=5,
            num_beams=num_beams,
            do_sample=False,
            pad_token_id=0,
        )
        assert until_end(tokens[i]) == until_end(alone[0])


def test_sampling_returns_the_sequences_asked_for(make_llm):
    llm = make_llm("llama")
    prompt = llm.read(**llm.encode(PROMPTS))
    tokens = llm.generate_after(
        prompt, None, DELIMITER, max_new_tokens=5, do_sample=True, num_return_sequences=4
    )
    assert tokens.shape == (12, 5)
    assert len({tuple(row.tolist()) for row in tokens[:4]}) > 1


def test_generation_settings_of_the_base_do_not_bend_greedy_decoding(make_llm):
    llm = make_llm("llama")
    prompt = llm.read(**llm.encode(PROMPTS))
    plain = llm.generate_after(prompt, None, DELIMITER, max_new_tokens=8)
    settings = {
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "guidance_scale": 3.0,
        "min_length": 40,
        "min_new_tokens": 8,
        "num_beams": 4,
        "do_sample": True,
        "use_cache": False,
        "cache_implementation": "static",
        "return_dict_in_generate": True,
    }
    for name, value in settings.items():
        setattr(llm.model.generation_config, name, value)
    llm.model.config.use_cache = False
    assert torch.equal(llm.generate_after(prompt, None, DELIMITER, max_new_tokens=8), plain)


def test_generation_ends_at_the_tokenizers_end_and_at_the_bases_own(make_llm):
    llm = make_llm("llama", seed=2)
    prompt = llm.read(**llm.encode(["sort: 3 1 2"]))
    llm.model.generation_config.eos_token_id = None
    free = llm.generate_after(prompt, None, DELIMITER, max_new_tokens=6)[0].tolist()
    assert len(set(free[:3])) == 3 and 0 not in free
    llm.model.generation_config.eos_token_id = [63, free[2]]
    ended = [*free[:2], llm.eos_token_id]
    assert llm.generate_after(prompt, None, DELIMITER, max_new_tokens=6).tolist() == [ended]
    llm.model.generation_config.eos_token_id = 63
    llm.tokenizer.eos_token = llm.tokenizer.convert_ids_to_tokens(free[1])
    assert llm.generate_after(prompt, None, DELIMITER, max_new_tokens=6).tolist() == [free[:2]]


def test_every_row_is_padded_after_the_end_that_the_base_chose(make_llm):
    llm = make_llm("llama", seed=2)
    prompt = llm.read(**llm.encode(PROMPTS))
    llm.model.generation_config.eos_token_id = None
    free = llm.generate_after(prompt, None, DELIMITER, max_new_tokens=6)
    end = int(free[0, 1])
    llm.model.generation_config.eos_token_id = [63, end]
    tokens = llm.generate_after(prompt, None, DELIMITER, max_new_tokens=6)
    assert tokens[0].tolist() == [int(free[0, 0])] + [llm.eos_token_id] * (tokens.shape[1] - 1)
    assert end not in tokens
    chosen = llm.generate_after(prompt, None, DELIMITER, max_new_tokens=6, eos_token_id=end)
    assert torch.equal(chosen[0], tokens[0])


@pytest.mark.parametrize(
    "option",
    [
        "cache_implementation",
        "past_key_values",
        "use_cache",
        "generation_config",
        "return_dict_in_generate",
    ],
)
def test_options_that_would_replace_the_cache_are_refused(make_llm, option):
    llm = make_llm("llama")
    prompt = llm.read(**llm.encode(["a"]))
    with pytest.raises(ConfigError, match=f"^generate: {option} cannot be used"):
        llm.generate_after(prompt, None, DELIMITER, **{option: None})


def test_a_delimiter_without_tokens_is_refused(make_llm):
    llm = make_llm("llama")
    with pytest.raises(ConfigError, match="answer_delimiter: got ''"):
        llm.generate_after(llm.read(**llm.encode(["a"])), None, "")


def test_embedding_norm_is_that_of_the_input_embeddings(make_llm):
    llm = make_llm("llama")
    assert llm.embedding_norm == pytest.approx(llm.embedding.norm(dim=-1).mean().item())
    gemma = make_llm("gemma3")
    scaled = gemma.embedding.norm(dim=-1).mean().item() * gemma.hidden_size**0.5
    assert gemma.embedding_norm == pytest.approx(scaled, rel=1e-4)


# --- loading --------------------------------------------------------------------------------------


def test_load_gives_the_saved_base(llm, save_llm, tmp_path):
    loaded = FrozenLLM.load(save_llm(llm, tmp_path))
    assert loaded.sha256() == llm.sha256()
    assert loaded.name == str(tmp_path)
    assert loaded.embedding.dtype == torch.float32
    assert not loaded.is_quantized
    ours, theirs = llm.encode(PROMPTS), loaded.encode(PROMPTS)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(
        llm.read(**ours, layers=LAYERS).states, loaded.read(**theirs, layers=LAYERS).states
    )


def assert_not_loaded(folder, **options):
    with pytest.raises(ConfigError) as caught:
        FrozenLLM.load(str(folder), **options)
    message = str(caught.value)
    assert message.startswith(f"base {folder}: ")
    assert "\n" not in message


def test_a_missing_folder_is_refused(tmp_path):
    assert_not_loaded(tmp_path / "nothing")
    assert_not_loaded("nobody/nothing")


@pytest.mark.parametrize("pattern", ["*.safetensors", "config.json", "tokenizer*"])
def test_an_incomplete_folder_is_refused(make_llm, save_llm, tmp_path, pattern):
    save_llm(make_llm("llama"), tmp_path)
    for path in tmp_path.glob(pattern):
        path.unlink()
    assert_not_loaded(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_file_is_refused(make_llm, save_llm, tmp_path, name):
    save_llm(make_llm("llama"), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_not_loaded(tmp_path)


def test_a_model_of_another_sort_is_refused(make_llm, save_llm, tmp_path):
    llm = make_llm("llama")
    save_llm(llm, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    assert_not_loaded(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    assert_not_loaded(tmp_path)


def test_weights_without_an_output_layer_are_refused(make_llm, save_llm, tmp_path):
    llm = make_llm("llama")
    save_llm(llm, tmp_path)
    llm.model.base_model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"its weights lack lm_head.weight \(1 missing\)"):
        FrozenLLM.load(str(tmp_path))


def test_weights_of_other_shapes_are_refused(make_llm, save_llm, tmp_path):
    llm = make_llm("llama")
    save_llm(llm, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    assert_not_loaded(tmp_path)


@pytest.mark.parametrize(
    "options", [{"no_such_option": 1}, {"trust_remote_code": True}, {"output_loading_info": True}]
)
def test_unknown_options_are_refused(make_llm, save_llm, tmp_path, options):
    assert_not_loaded(save_llm(make_llm("llama"), tmp_path), **options)


def test_a_missing_library_is_named(make_llm, save_llm, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise ImportError("bitsandbytes is not installed\nmore")

    folder = save_llm(make_llm("llama"), tmp_path)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    with pytest.raises(ConfigError, match=r"\(bitsandbytes is not installed\)"):
        FrozenLLM.load(folder)


def test_a_subfolder_holds_weights_and_tokenizer(make_llm, save_llm, tmp_path):
    llm = make_llm("llama")
    save_llm(llm, tmp_path / "inner")
    assert FrozenLLM.load(str(tmp_path), subfolder="inner").sha256() == llm.sha256()


def test_options_of_the_hub_reach_the_tokenizer(monkeypatch):
    seen = {}

    def load(source, **kwargs):
        seen.update(kwargs)
        raise OSError("stop")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", load)
    options = {"revision": "v1", "token": "t", "cache_dir": "c", "subfolder": "s"}
    with pytest.raises(ConfigError, match="stop"):
        FrozenLLM.load("some/base", device_map="cpu", **options)
    assert seen == options | {"trust_remote_code": False}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_dtype_asked_for_is_taken(make_llm, save_llm, tmp_path, name):
    folder = save_llm(make_llm("llama"), tmp_path)
    assert FrozenLLM.load(folder, **{name: torch.bfloat16}).embedding.dtype == torch.bfloat16


def test_a_folder_is_found_from_another_directory(make_llm, save_llm, tmp_path, monkeypatch):
    save_llm(make_llm("llama"), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("base", "./base", "~/base"):
        assert FrozenLLM.load(name).name == str(tmp_path / "base")


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused(make_llm):
    llm = make_llm("llama", vocab_size=64)
    llm.tokenizer.add_special_tokens({"additional_special_tokens": ["<|unused|>"]})
    FrozenLLM(llm.model, llm.tokenizer, "special")
    llm.tokenizer.add_tokens(["word"])
    with pytest.raises(ConfigError, match=r"^base more: its tokenizer has tokens up to 65, its em"):
        FrozenLLM(llm.model, llm.tokenizer, "more")
    ended = make_llm("llama")
    ended.tokenizer.eos_token = "<|new|>"
    ended.tokenizer.add_special_tokens({"eos_token": "<|new|>"})
    with pytest.raises(ConfigError, match="^base ended: .* up to 64, its embedding table 64 rows"):
        FrozenLLM(ended.model, ended.tokenizer, "ended")


def test_a_tokenizer_without_an_end_token_is_refused(make_llm):
    llm = make_llm("llama")
    llm.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="^base mine: its tokenizer has no end-of-text token"):
        FrozenLLM(llm.model, llm.tokenizer, "mine")


def test_layers_without_keys_and_values_are_refused(make_llm):
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    )
    with pytest.raises(ConfigError, match="^base lfm: some layers do not keep keys and values"):
        FrozenLLM(Lfm2ForCausalLM(config), make_llm("llama").tokenizer, "lfm")


# --- dtypes and 4-bit -----------------------------------------------------------------------------


def test_a_bf16_base_gives_fp32_states_and_logits(make_llm):
    llm = make_llm("llama")
    exact = llm.read(**llm.encode(PROMPTS), layers=LAYERS)
    half = FrozenLLM(copy.deepcopy(llm.model).bfloat16(), llm.tokenizer, "half")
    prompt = half.read(**half.encode(PROMPTS), layers=LAYERS)
    assert prompt.states.dtype == torch.float32
    inside = prompt.attention_mask.bool()
    torch.testing.assert_close(prompt.states[inside], exact.states[inside], atol=0.15, rtol=0.05)
    logits = half.answer_logits(prompt, soft_rows(half), DELIMITER, LABELS)
    assert logits.dtype == torch.float32
    assert half.lm_head(torch.zeros(1, 2, 32)).shape == (1, 2, 64)


def test_4bit_layers_are_kept_off_the_kernel_without_backward(make_llm):
    class Linear4bit(nn.Linear):
        support_avx512bf16_for_cpu = True

    llm = make_llm("llama")
    layer = llm.model.model.layers[0].self_attn
    layer.q_proj = Linear4bit(32, 32, bias=False)
    FrozenLLM(llm.model, llm.tokenizer, "4-bit")
    assert layer.q_proj.support_avx512bf16_for_cpu is False


def test_gradients_through_a_4bit_base_on_cpu(make_llm, save_llm, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    folder = save_llm(make_llm("llama", hidden_size=64), tmp_path)
    llm = FrozenLLM.load(folder, quantization_config=quantization, device_map={"": "cpu"})
    assert llm.is_quantized
    linears = [m for m in llm.modules() if type(m).__name__ == "Linear4bit"]
    assert linears and not any(m.support_avx512bf16_for_cpu for m in linears)
    rows = soft_rows(llm).requires_grad_()

    def gradient():
        logits = llm.answer_logits(llm.read(**llm.encode(PROMPTS)), rows, DELIMITER, LABELS)
        return torch.autograd.grad(answer_loss(logits, LABELS), rows)[0].flatten()

    llm.generate_after(llm.read(**llm.encode(PROMPTS)), rows.detach(), DELIMITER, max_new_tokens=2)
    quantized = gradient()
    llm.model = llm.model.dequantize()
    cosine = torch.cosine_similarity(quantized, gradient(), dim=0)
    assert cosine > 0.99
