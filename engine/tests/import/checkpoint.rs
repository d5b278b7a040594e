//! Small checkpoints of every family, and a safetensors writer that shares nothing with the reader.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use pipo_engine::store::Place;
use pipo_plan::model::Part;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

/// A tensor: what it is to the store, what the checkpoint calls it, and its numbers.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) place: Place,
    pub(crate) name: &'static str,
    pub(crate) expert: Option<u32>,
    pub(crate) called: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) numbers: Vec<f32>,
}

#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) dtype: &'static str,
}

/// Sizes that are no multiples of 64, so that groups end early and blocks do not line up.
const HIDDEN: u64 = 72;
const FFN: u64 = 100;
const VOCAB: u64 = 50;
const LAYERS: u32 = 2;
const EXPERTS: u32 = 3;
const POSITIONS: u64 = 34;

pub(crate) const FAMILIES: [&str; 6] = ["opt", "llama", "mistral", "qwen2", "qwen3", "mixtral"];

/// A random checkpoint of a family, its numbers exact in `dtype`.
pub(crate) fn small(family: &str, dtype: &'static str, tied: bool) -> Checkpoint {
    let opt = family == "opt";
    let (heads, kv_heads, head_dim) = if opt { (4, 4, 18) } else { (4, 2, 20) };
    let mut config = json!({
        "model_type": family, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": heads, "vocab_size": VOCAB, "max_position_embeddings": POSITIONS - 2,
        "tie_word_embeddings": tied,
    });
    if opt {
        config["ffn_dim"] = json!(FFN);
        config["word_embed_proj_dim"] = json!(HIDDEN);
    } else {
        config["intermediate_size"] = json!(FFN);
        config["num_key_value_heads"] = json!(kv_heads);
        config["head_dim"] = json!(head_dim);
    }
    if family == "mixtral" {
        config["num_local_experts"] = json!(EXPERTS);
        config["num_experts_per_tok"] = json!(2);
    }
    let mut list = List { family, tensors: Vec::new() };
    list.model(heads * head_dim, kv_heads * head_dim, head_dim, tied);
    let mut random = Pcg64::seed_from_u64(7);
    let mut tensors = list.tensors;
    for tensor in &mut tensors {
        for number in &mut tensor.numbers {
            let drawn = (random.next_u32() as f32 / u32::MAX as f32 - 0.4) * 0.3;
            *number = narrow(dtype, drawn).1;
        }
    }
    Checkpoint { config, tensors, dtype }
}

struct List<'a> {
    family: &'a str,
    tensors: Vec<Tensor>,
}

impl List<'_> {
    fn model(&mut self, query: u64, cached: u64, head_dim: u64, tied: bool) {
        let opt = self.family == "opt";
        let base = if opt { "model.decoder" } else { "model" };
        self.add(
            Part::Embedding,
            0,
            "tokens",
            &format!("{base}.embed_tokens.weight"),
            &[VOCAB, HIDDEN],
        );
        if opt {
            let called = format!("{base}.embed_positions.weight");
            self.add(Part::Embedding, 0, "positions", &called, &[POSITIONS, HIDDEN]);
        }
        for layer in 0..LAYERS {
            let base = format!("{base}.layers.{layer}");
            let (first, o, second) = if opt {
                ("self_attn_layer_norm", "out_proj", "final_layer_norm")
            } else {
                ("input_layernorm", "o_proj", "post_attention_layernorm")
            };
            let qkv_bias = opt || self.family == "qwen2";
            self.norm(Part::Attention, layer, &format!("{base}.{first}"));
            for (names, called, outputs, inputs, bias) in [
                (["q", "q_bias"], "q_proj", query, HIDDEN, qkv_bias),
                (["k", "k_bias"], "k_proj", cached, HIDDEN, qkv_bias),
                (["v", "v_bias"], "v_proj", cached, HIDDEN, qkv_bias),
                (["o", "o_bias"], o, HIDDEN, query, opt),
            ] {
                let called = format!("{base}.self_attn.{called}");
                self.linear(Part::Attention, layer, names, &called, [outputs, inputs], bias);
            }
            if self.family == "qwen3" {
                for name in ["q_norm", "k_norm"] {
                    let called = format!("{base}.self_attn.{name}.weight");
                    self.add(Part::Attention, layer, name, &called, &[head_dim]);
                }
            }
            self.norm(Part::Mlp, layer, &format!("{base}.{second}"));
            self.mlp(layer, &base);
        }
        self.norm(
            Part::Head,
            0,
            &format!("{base}.{}", if opt { "final_layer_norm" } else { "norm" }),
        );
        if !tied {
            self.add(Part::Head, 0, "head", "lm_head.weight", &[VOCAB, HIDDEN]);
        }
    }

    fn mlp(&mut self, layer: u32, base: &str) {
        match self.family {
            "opt" => {
                let part = Part::Mlp;
                self.linear(
                    part,
                    layer,
                    ["fc1", "fc1_bias"],
                    &format!("{base}.fc1"),
                    [FFN, HIDDEN],
                    true,
                );
                self.linear(
                    part,
                    layer,
                    ["fc2", "fc2_bias"],
                    &format!("{base}.fc2"),
                    [HIDDEN, FFN],
                    true,
                );
            }
            "mixtral" => {
                let base = format!("{base}.block_sparse_moe");
                let router = format!("{base}.gate.weight");
                self.add(Part::Mlp, layer, "router", &router, &[u64::from(EXPERTS), HIDDEN]);
                for expert in 0..EXPERTS {
                    for (name, called, shape) in [
                        ("gate", "w1", [FFN, HIDDEN]),
                        ("down", "w2", [HIDDEN, FFN]),
                        ("up", "w3", [FFN, HIDDEN]),
                    ] {
                        let called = format!("{base}.experts.{expert}.{called}.weight");
                        self.add(Part::Mlp, layer, name, &called, &shape);
                        self.tensors.last_mut().unwrap().expert = Some(expert);
                    }
                }
            }
            _ => {
                for (name, shape) in
                    [("gate", [FFN, HIDDEN]), ("up", [FFN, HIDDEN]), ("down", [HIDDEN, FFN])]
                {
                    let called = format!("{base}.mlp.{name}_proj.weight");
                    self.add(Part::Mlp, layer, name, &called, &shape);
                }
            }
        }
    }

    fn linear(
        &mut self,
        part: Part,
        layer: u32,
        [name, bias_name]: [&'static str; 2],
        called: &str,
        shape: [u64; 2],
        bias: bool,
    ) {
        self.add(part, layer, name, &format!("{called}.weight"), &shape);
        if bias {
            self.add(part, layer, bias_name, &format!("{called}.bias"), &shape[..1]);
        }
    }

    fn norm(&mut self, part: Part, layer: u32, called: &str) {
        self.add(part, layer, "norm", &format!("{called}.weight"), &[HIDDEN]);
        if self.family == "opt" {
            self.add(part, layer, "norm_bias", &format!("{called}.bias"), &[HIDDEN]);
        }
    }

    fn add(&mut self, part: Part, layer: u32, name: &'static str, called: &str, shape: &[u64]) {
        let count = usize::try_from(shape.iter().product::<u64>()).unwrap();
        self.tensors.push(Tensor {
            place: Place { part, layer },
            name,
            expert: None,
            called: called.into(),
            shape: shape.to_vec(),
            numbers: vec![0.0; count],
        });
    }
}

impl Checkpoint {
    /// Writes the checkpoint with its tensors spread over so many files; an index where more than one.
    pub(crate) fn write(&self, folder: &Path, files: usize) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        if files == 1 {
            let all: Vec<&Tensor> = self.tensors.iter().collect();
            return fs::write(folder.join("model.safetensors"), safetensors(&all, self.dtype))
                .unwrap();
        }
        let mut map = serde_json::Map::new();
        for file in 0..files {
            let name = format!("model-{:05}-of-{files:05}.safetensors", file + 1);
            let part: Vec<&Tensor> = self.tensors.iter().skip(file).step_by(files).collect();
            for tensor in &part {
                map.insert(tensor.called.clone(), json!(name));
            }
            fs::write(folder.join(name), safetensors(&part, self.dtype)).unwrap();
        }
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    pub(crate) fn tensor(&mut self, called: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.called == called).unwrap()
    }
}

/// A safetensors file.
pub(crate) fn safetensors(tensors: &[&Tensor], dtype: &str) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        for &number in &tensor.numbers {
            data.extend(narrow(dtype, number).0);
        }
        let entry =
            json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, data.len()] });
        header.insert(tensor.called.clone(), entry);
    }
    file(&Value::Object(header).to_string(), &data)
}

/// A file of this header and data; the header is padded to 8 bytes as the reference writer does.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut padded = header.to_owned();
    padded.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut bytes = (padded.len() as u64).to_le_bytes().to_vec();
    bytes.extend(padded.bytes());
    bytes.extend(data);
    bytes
}

/// The bytes of a number, and the number that they stand for.
fn narrow(dtype: &str, number: f32) -> (Vec<u8>, f32) {
    match dtype {
        "F16" => (f16::from_f32(number).to_le_bytes().into(), f16::from_f32(number).to_f32()),
        "BF16" => (bf16::from_f32(number).to_le_bytes().into(), bf16::from_f32(number).to_f32()),
        _ => (number.to_le_bytes().into(), number),
    }
}
