"""Makes the golden files of the engine's correctness tests: see README.md beside this file.

Every model is tiny, random and seeded. Its weights are written first, in the names and layout of the Hub, and
the reference (Hugging Face transformers, float32, CPU, eager attention) is then loaded from those files,
so the files hold exactly what was run.
"""

import argparse
import copy
import json
import os
import platform
import re
import shutil
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import safetensors
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent

PROMPT = 24
GENERATED = 64

# A float32 engine that sums in another order errs by about 1e-6 of the largest logit, and the largest is
# about 10. A greedy step nearer than this could turn over, so a seed with such a step is passed over.
MIN_LOGIT_GAP = 1e-2
# The same for the choice of experts, in router probability between the last chosen and the first left out.
MIN_ROUTER_GAP = 1e-3
# Two orders of summation in float32 (with the cache and without) may differ by this much of the largest logit.
# A model that magnifies rounding more leaves too little of a tolerance of 1e-4.
MAX_NOISE = 4e-6
# Text that repeats one token would hide an error in the cache or in the positions.
MIN_DISTINCT = 24
MAX_SHARE = 0.35

# The layout is that of the configurations on the Hub: `rope_theta`, `rope_scaling`, `torch_dtype` at the top.
# Qwen3 alone is written as transformers 5 writes it (`rope_parameters`, `dtype`): an engine meets both.
LLAMA = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    attention_bias=False,
    mlp_bias=False,
    hidden_act="silu",
    bos_token_id=1,
    eos_token_id=2,
    torch_dtype="float16",
)

# Where `rms_norm_eps` is 0.01 it is that large so that the logits show an engine that does not read it.
MODELS = {
    "opt": dict(
        what="OPT: norm before each part, biases, learned positions (offset 2), tied embeddings",
        seed=1,
        config=dict(
            architectures=["OPTForCausalLM"],
            model_type="opt",
            vocab_size=256,
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            activation_function="relu",
            do_layer_norm_before=True,
            _remove_final_layer_norm=False,
            dropout=0.1,
            attention_dropout=0.0,
            layerdrop=0.0,
            init_std=0.02,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
            torch_dtype="float16",
        ),
    ),
    "opt-postnorm": dict(
        what="OPT as in opt-350m: norm after each part, no final norm, embeddings narrower than the layers; stored as F32",
        seed=2,
        store="F32",
        config=dict(
            architectures=["OPTForCausalLM"],
            model_type="opt",
            vocab_size=256,
            hidden_size=64,
            word_embed_proj_dim=32,
            ffn_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            activation_function="relu",
            do_layer_norm_before=False,
            dropout=0.1,
            attention_dropout=0.0,
            layerdrop=0.0,
            init_std=0.02,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
            torch_dtype="float32",
        ),
    ),
    "llama2": dict(
        what="Llama 2: as many key heads as query heads, separate output matrix, theta left to its default (10000); a vocabulary that is no multiple of 4",
        seed=3,
        config=LLAMA
        | dict(
            vocab_size=251,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            rms_norm_eps=1e-2,
            rope_scaling=None,
            tie_word_embeddings=False,
        ),
    ),
    "llama3": dict(
        what="Llama 3.1: grouped queries, theta 500000, llama3 rope scaling (some frequencies kept, one blended, the rest divided); with a tokenizer of the same vocabulary",
        seed=4,
        tokenizer=True,
        config=LLAMA
        | dict(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=dict(
                factor=8.0,
                high_freq_factor=4.0,
                low_freq_factor=1.0,
                original_max_position_embeddings=64,
                rope_type="llama3",
            ),
            bos_token_id=0,
            eos_token_id=[1, 2],
            tie_word_embeddings=False,
        ),
    ),
    "llama-tied": dict(
        what="Llama with tied embeddings, one key head for all queries, three layers, and a hidden size (80) that is no multiple of 64; also in llama-tied-sharded",
        seed=5,
        sharded=True,
        config=LLAMA
        | dict(
            vocab_size=200,
            hidden_size=80,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=5,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=128,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            rope_scaling=None,
            tie_word_embeddings=True,
        ),
    ),
    "mistral": dict(
        what="Mistral with a sliding window of 8, shorter than the prompt",
        seed=6,
        config=dict(
            architectures=["MistralForCausalLM"],
            model_type="mistral",
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            sliding_window=8,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            torch_dtype="float16",
        ),
    ),
    "qwen2": dict(
        what="Qwen2: biases on q, k and v alone; a window in the configuration that use_sliding_window turns off; stored as BF16",
        seed=7,
        store="BF16",
        config=dict(
            architectures=["Qwen2ForCausalLM"],
            model_type="qwen2",
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            max_window_layers=1,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            sliding_window=8,
            use_sliding_window=False,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            torch_dtype="bfloat16",
        ),
    ),
    "qwen3": dict(
        what="Qwen3: q and k normed per head before the rotation, heads wider than hidden / heads, tied embeddings; configuration as transformers 5 writes it",
        seed=8,
        config=dict(
            architectures=["Qwen3ForCausalLM"],
            model_type="qwen3",
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            attention_bias=False,
            max_position_embeddings=128,
            max_window_layers=2,
            layer_types=["full_attention", "full_attention"],
            hidden_act="silu",
            rms_norm_eps=1e-2,
            rope_parameters=dict(rope_theta=1000000.0, rope_type="default"),
            sliding_window=None,
            use_sliding_window=False,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            dtype="float16",
        ),
    ),
    "mixtral": dict(
        what="Mixtral: four experts, two a token",
        seed=9,
        config=dict(
            architectures=["MixtralForCausalLM"],
            model_type="mixtral",
            vocab_size=160,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=128,
            hidden_act="silu",
            rms_norm_eps=1e-2,
            rope_theta=1000000.0,
            sliding_window=None,
            tie_word_embeddings=False,
            output_router_logits=False,
            router_aux_loss_coef=0.02,
            bos_token_id=1,
            eos_token_id=2,
            torch_dtype="float16",
        ),
    ),
}

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

# What the tokenizer is trained on. The second half of the examples is text that it has not seen.
SENTENCES = [
    "A pipeline keeps the link busy while the processor works on the layer before.",
    "The weights of the next layer are on their way while this layer is computed.",
    "When the copy takes longer than the work, the processor waits for the copy.",
    "What stays in the memory of the device need not be copied again.",
    "The disk reads a block, the host keeps it, the link carries it, the device uses it.",
    "Two buffers are enough when every layer takes as long as every other layer.",
    "It's the slowest of them that sets the pace; they're all as fast as it's let be.",
]
SPECIAL = ["<|begin|>", "<|end|>", "<|stop|>"]
EXAMPLES = [
    "The link carries the weights of the next layer.",
    "The processor waits.\n\n  Then it works,   and waits again.",
    "it's 2025: they'd copy 1234567 bytes in 0.8 s",
    "Ein größerer Puffer hilft nicht; größere Brücken schon. 速い 🚀",
    "",
    " ",
]


def eos_of(config):
    eos = config["eos_token_id"]
    return set(eos) if isinstance(eos, list) else {eos}


def write_json(path, value):
    """Indented, but a list of numbers or strings stays on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda m: "[" + re.sub(r",\n\s+", ", ", m[1]) + "]", text)
    assert json.loads(text) == value
    path.write_text(text + "\n", encoding="utf-8")


def shapes_of(config):
    """Names and shapes as a checkpoint on the Hub has them (for Mixtral, not those of the module)."""
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(config)), dtype=torch.float32)
        model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        return {name: tuple(t.shape) for name, t in safetensors.torch.load_file(file).items()}


def draw(name, shape, config, seed):
    """One tensor: large enough weights that the layers, not the embedding, decide the next token."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * x
    if name.endswith(".bias"):
        return 0.15 * x
    if "embed_positions" in name:
        return x
    if "embed_tokens" in name:
        # A tied table is the output matrix too: this makes the logits' deviation about 3.
        tied = config.get("tie_word_embeddings", config["model_type"] == "opt")
        return x * (3.0 / np.sqrt(shape[1]) if tied else 1.0)
    if name == "lm_head.weight":
        return x * 3.0 / np.sqrt(shape[1])
    # Sharper attention than one over the root gives, so that it depends on the position.
    gain = 2.0 if "q_proj" in name else 1.5
    return x * gain / np.sqrt(shape[1])


def weights_of(config, shapes, seed, store):
    weights = {}
    for name in sorted(shapes):
        t = torch.from_numpy(draw(name, shapes[name], config, seed)).to(torch.float32)
        t = t.to(torch.float16)
        if store == "BF16":
            # Exact in both: to bf16, then once more to drop what lies below fp16's smallest step.
            t = t.to(torch.bfloat16).to(torch.float16)
        stored = t.to(DTYPES[store])
        assert torch.equal(stored.to(torch.float32), t.to(torch.float32)), name
        assert torch.isfinite(t).all(), name
        weights[name] = stored.contiguous()
    return weights


def save_whole(folder, config, weights):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def save_sharded(folder, config, weights, shards):
    """In the order of the names and cut by bytes, so that a layer may lie in two shards, as on the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    total = sum(t.nbytes for t in weights.values())
    parts = [{} for _ in range(shards)]
    before = 0
    for name, t in weights.items():
        parts[min(before * shards // total, shards - 1)][name] = t
        before += t.nbytes
    index = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        safetensors.torch.save_file(part, folder / file, metadata={"format": "pt"})
        index |= {name: file for name in part}
    layers = {}
    for name, file in index.items():
        if ".layers." in name:
            layers.setdefault(name.split(".layers.")[1].split(".")[0], set()).add(file)
    assert any(len(files) > 1 for files in layers.values()), "no layer crosses a shard"
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))},
    )


def load(folder, dtype):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    # The experts' loop of the model's own file, not a grouped kernel.
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.eval()


class Watch:
    """The residual stream at every layer's edge, and the router's probabilities, of one forward pass."""

    def __init__(self, model):
        body = model.model.decoder if hasattr(model.model, "decoder") else model.model
        self.edges, self.routers, self.hooks = [], [], []
        first = body.layers[0]
        self.hooks.append(
            first.register_forward_pre_hook(
                lambda _m, args, kwargs: self.edges.append((args[0] if args else kwargs["hidden_states"]).clone()),
                with_kwargs=True,
            )
        )
        for layer in body.layers:
            self.hooks.append(
                layer.register_forward_hook(
                    lambda _m, _a, out: self.edges.append((out[0] if isinstance(out, tuple) else out).clone())
                )
            )
        for module in model.modules():
            if type(module).__name__ == "MixtralTopKRouter":
                self.hooks.append(module.register_forward_hook(lambda _m, _a, out: self.routers.append(out[0])))

    def close(self):
        for hook in self.hooks:
            hook.remove()

    def router_gap(self, top_k):
        gaps = []
        for logits in self.routers:
            p = torch.softmax(logits.double(), -1).sort(-1, descending=True).values
            gaps.append((p[:, top_k - 1] - p[:, top_k]).min().item())
        return min(gaps)


@torch.no_grad()
def greedy(model, prompt, steps):
    """Greedy tokens with the cache, the logits that chose each, and the logits of the prompt."""
    out = model(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=True)
    prefill, cache = out.logits, out.past_key_values
    logits, tokens = [prefill[:, -1]], []
    for step in range(steps):
        tokens.append(logits[-1].argmax(-1))
        if step + 1 == steps:
            break
        seen = prompt.shape[1] + len(tokens)
        out = model(
            input_ids=tokens[-1][:, None],
            attention_mask=torch.ones(prompt.shape[0], seen, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(out.logits[:, -1])
    return torch.stack(tokens, 1), torch.stack(logits, 1), prefill


def relative(a, b):
    """Largest difference of a position's logits over the largest logit of that position; worst position."""
    a, b = a.double(), b.double()
    return ((a - b).abs().amax(-1) / b.abs().amax(-1)).max().item()


def rounded(x):
    """For figures that a person reads: three digits."""
    return float(f"{x:.3g}")


def attempt(folder, spec, prompt):
    """Runs the reference; None where the seed's text would not make a good test."""
    config = spec["config"]
    model = load(folder, torch.float32)
    tokens, logits, prefill = greedy(model, prompt, GENERATED)

    top = logits.double().topk(2, -1).values
    gaps = top[..., 0] - top[..., 1]
    if gaps.min() < MIN_LOGIT_GAP:
        return None
    for row in tokens:
        counts = torch.bincount(row)
        if (counts > 0).sum() < MIN_DISTINCT or counts.max() > MAX_SHARE * GENERATED:
            return None
    # An engine that stops at the end token must make the same 64 as one that does not.
    if eos_of(config) & set(tokens.flatten().tolist()):
        return None

    # Everything again in one pass without a cache.
    text = torch.cat([prompt, tokens[:, :-1]], 1)
    watch = Watch(model)
    with torch.no_grad():
        again = model(input_ids=text, use_cache=False).logits
    watch.close()
    assert len(watch.edges) == config["num_hidden_layers"] + 1
    cacheless = relative(again[:, PROMPT - 1 :], logits)
    # More than this would be another result, not another order of sums.
    assert cacheless < 1e-4, cacheless
    assert relative(again[:, :PROMPT], prefill) < 1e-4
    if cacheless > MAX_NOISE:
        return None
    assert torch.equal(again[:, PROMPT - 1 :].argmax(-1), tokens)

    router_gap = None
    if watch.routers:
        router_gap = watch.router_gap(config["num_experts_per_tok"])
        if router_gap < MIN_ROUTER_GAP:
            return None

    # And by the library's own loop.
    own = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=GENERATED,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(own[:, PROMPT:], tokens)

    edges = torch.stack([e.reshape(2, -1, config["hidden_size"])[0, PROMPT - 1] for e in watch.edges])
    return dict(
        tokens=tokens,
        logits=logits,
        prefill=prefill,
        gaps=gaps,
        edges=edges,
        cacheless=cacheless,
        router_gap=router_gap,
        text=text,
        full=again,
    )


@torch.no_grad()
def reduced(folder, run, dtype):
    """The reference itself in a shorter type, given the float32 tokens: what the rounding alone does."""
    model = load(folder, dtype)
    full = model(input_ids=run["text"], use_cache=False).logits.float()
    tokens, _, _ = greedy(model, run["text"][:, :PROMPT], GENERATED)
    same = []
    for mine, theirs in zip(tokens.tolist(), run["tokens"].tolist()):
        agree = [a == b for a, b in zip(mine, theirs)]
        same.append(agree.index(False) if False in agree else GENERATED)
    return dict(
        prompt_max_relative=rounded(relative(full[:1, :PROMPT], run["full"][:1, :PROMPT])),
        all_max_relative=rounded(relative(full, run["full"])),
        all_max_absolute=rounded((full - run["full"]).abs().max().item()),
        greedy_tokens_before_first_difference=same,
    )


@torch.no_grad()
def in_bf16_weights(folder, run):
    """Float32 arithmetic on weights rounded to bf16 (nearest, ties to even), every tensor of them."""
    model = load(folder, torch.float32)
    for weight in model.parameters():
        weight.copy_(weight.to(torch.bfloat16))
    return model(input_ids=run["text"], use_cache=False).logits


def write_f32(path, tensor):
    array = tensor.detach().to(torch.float32).contiguous().numpy().astype("<f4")
    path.write_bytes(array.tobytes())
    return dict(file=path.name, dtype="f32le", shape=list(array.shape))


def train_tokenizer():
    """Byte-level BPE in the manner of GPT-2: the 256 bytes, the special tokens, and a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODELS["llama3"]["config"]["vocab_size"],
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    begin = tokenizer.token_to_id(SPECIAL[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=None, special_tokens=[(SPECIAL[0], begin)]
    )
    return tokenizer


def save_tokenizer(folder):
    tokenizer = train_tokenizer()
    assert tokenizer.get_vocab_size() == MODELS["llama3"]["config"]["vocab_size"]
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    back = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = []
    for text in EXAMPLES + [SPECIAL[0] + "The link" + SPECIAL[1]]:
        plain = back.encode(text, add_special_tokens=False)
        assert back.decode(plain.ids, skip_special_tokens=False) == text, text
        cases.append(
            dict(
                text=text,
                ids=plain.ids,
                tokens=plain.tokens,
                ids_with_special=back.encode(text, add_special_tokens=True).ids,
            )
        )
    write_json(folder / "tokenizer-examples.json", dict(special=SPECIAL, cases=cases))


def make(out, name, spec):
    config, store = spec["config"], spec.get("store", "F16")
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    shapes = shapes_of(config)

    for seed in range(spec["seed"], spec["seed"] + 10_000, 100):
        weights = weights_of(config, shapes, seed, store)
        save_whole(folder, config, weights)
        # The first ids are special ones in every vocabulary here; the prompt keeps off them.
        rng = np.random.default_rng([seed, zlib.crc32(b"prompt")])
        prompt = torch.from_numpy(rng.integers(4, config["vocab_size"], size=(2, PROMPT)))
        run = attempt(folder, spec, prompt)
        if run is None:
            continue
        # The tokens are to be the same in fp16 too, as far as the reference can tell.
        f16 = reduced(folder, run, torch.float16)
        if f16["greedy_tokens_before_first_difference"] == [GENERATED, GENERATED]:
            break
    else:
        raise SystemExit(f"{name}: no seed gave a good test")

    if spec.get("sharded"):
        other = out / f"{name}-sharded"
        shutil.rmtree(other, ignore_errors=True)
        save_sharded(other, config, weights, 3)
        again, _, prefill = greedy(load(other, torch.float32), prompt, GENERATED)
        assert torch.equal(again, run["tokens"]) and torch.equal(prefill, run["prefill"])
    if spec.get("tokenizer"):
        save_tokenizer(folder)

    prefill = run["prefill"]
    bf16 = in_bf16_weights(folder, run)
    if store == "BF16":
        assert relative(bf16, run["full"]) < 1e-6
    golden = dict(
        what=spec["what"],
        seed=seed,
        stored_as=store,
        reference=f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32, CPU, eager attention",
        config=config,
        prompts=prompt.tolist(),
        greedy=run["tokens"].tolist(),
        logits=dict(
            prompt_0=write_f32(folder / "prompt-0.f32", prefill[0]),
            prompt_1_last=write_f32(folder / "prompt-1-last.f32", prefill[1, -1]),
            last_step=write_f32(folder / "last-step.f32", run["logits"][:, -1]),
        ),
        logits_bf16_weights=dict(prompts_last=write_f32(folder / "bf16-weights.f32", bf16[:, PROMPT - 1])),
        residual=write_f32(folder / "residual.f32", run["edges"]),
        greedy_gaps=[[rounded(g) for g in row] for row in run["gaps"].tolist()],
        notes=dict(
            parameters=sum(t.numel() for t in weights.values()),
            logit_deviation=rounded(prefill[0].std().item()),
            logit_largest=rounded(prefill.abs().max().item()),
            greedy_smallest_gap=rounded(run["gaps"].min().item()),
            router_smallest_gap=rounded(run["router_gap"]) if run["router_gap"] is not None else None,
            distinct_tokens=[len(set(row)) for row in run["tokens"].tolist()],
            with_cache_against_without=rounded(run["cacheless"]),
            bf16_weights=dict(
                prompt_max_relative=rounded(relative(bf16[:1, :PROMPT], run["full"][:1, :PROMPT])),
                all_max_relative=rounded(relative(bf16, run["full"])),
            ),
            reference_in_f16=f16,
            reference_in_bf16=reduced(folder, run, torch.bfloat16),
        ),
    )
    write_json(folder / "golden.json", golden)
    notes = golden["notes"]
    print(
        f"{name:14} seed {seed:5}  gap {notes['greedy_smallest_gap']:<8} router {notes['router_smallest_gap']}"
        f"  deviation {notes['logit_deviation']}  distinct {notes['distinct_tokens']}"
        f"  no cache {notes['with_cache_against_without']}"
        f"\n{'':14} bf16 weights {notes['bf16_weights']}"
        f"\n{'':14} f16 {notes['reference_in_f16']}\n{'':14} bf16 {notes['reference_in_bf16']}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this file's)")
    parser.add_argument("models", nargs="*", help="which models (default: all)")
    args = parser.parse_args()

    pins = dict(
        line.split("==") for line in (HERE / "requirements.txt").read_text().split("\n") if "==" in line
    )
    for module in (np, safetensors, tokenizers, torch, transformers):
        have = module.__version__.split("+")[0]
        if have != pins[module.__name__]:
            raise SystemExit(f"requirements.txt has {module.__name__} {pins[module.__name__]}; installed is {have}")

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"python {platform.python_version()}")
    for name in args.models or MODELS:
        make(args.out, name, MODELS[name])


if __name__ == "__main__":
    main()
