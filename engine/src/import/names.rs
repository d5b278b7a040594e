//! What the tensors of the store are called in a checkpoint.

use pipo_plan::model::{Family, Part};

use crate::store::{Place, Placed};

/// What precedes the names, the usual first. Checkpoints saved from the bare model, without the head
/// for text, lack the outermost word.
pub(super) fn prefixes(family: Family) -> [&'static str; 2] {
    match family {
        Family::Opt => ["model.decoder.", "decoder."],
        _ => ["model.", ""],
    }
}

/// A tensor that every checkpoint of a family has, to tell prefixes apart.
pub(super) const LANDMARK: &str = "embed_tokens.weight";

/// The name of a tensor in a checkpoint with this prefix; `None` for a tensor the family lacks.
pub(super) fn name(family: Family, prefix: &str, place: Place, placed: &Placed) -> Option<String> {
    let tensor = placed.tensor.name;
    if tensor == "head" {
        return Some("lm_head.weight".into());
    }
    let (module, kind) = match tensor.strip_suffix("_bias") {
        Some(module) => (module, "bias"),
        None => (tensor, "weight"),
    };
    let module = if family == Family::Opt {
        opt(place.part, module)?.to_owned()
    } else {
        llama(place.part, module, placed.expert)?
    };
    Some(match place.part {
        Part::Attention | Part::Mlp => format!("{prefix}layers.{}.{module}.{kind}", place.layer),
        Part::Embedding | Part::Head => format!("{prefix}{module}.{kind}"),
    })
}

fn opt(part: Part, module: &str) -> Option<&'static str> {
    Some(match (part, module) {
        (Part::Embedding, "tokens") => "embed_tokens",
        (Part::Embedding, "positions") => "embed_positions",
        (Part::Embedding, "project_in") => "project_in",
        (Part::Attention, "norm") => "self_attn_layer_norm",
        (Part::Attention, "q") => "self_attn.q_proj",
        (Part::Attention, "k") => "self_attn.k_proj",
        (Part::Attention, "v") => "self_attn.v_proj",
        (Part::Attention, "o") => "self_attn.out_proj",
        (Part::Mlp, "fc1") => "fc1",
        (Part::Mlp, "fc2") => "fc2",
        // The layer's second norm and the model's last are both called final.
        (Part::Mlp | Part::Head, "norm") => "final_layer_norm",
        (Part::Head, "project_out") => "project_out",
        _ => return None,
    })
}

/// Llama's names, which Mistral, Qwen and Mixtral share.
fn llama(part: Part, module: &str, expert: Option<u32>) -> Option<String> {
    if let Some(expert) = expert {
        let matrix = match module {
            "gate" => "w1",
            "down" => "w2",
            "up" => "w3",
            _ => return None,
        };
        return Some(format!("block_sparse_moe.experts.{expert}.{matrix}"));
    }
    let name = match (part, module) {
        (Part::Embedding, "tokens") => "embed_tokens",
        (Part::Attention, "norm") => "input_layernorm",
        (Part::Attention, "q") => "self_attn.q_proj",
        (Part::Attention, "k") => "self_attn.k_proj",
        (Part::Attention, "v") => "self_attn.v_proj",
        (Part::Attention, "o") => "self_attn.o_proj",
        (Part::Attention, "q_norm") => "self_attn.q_norm",
        (Part::Attention, "k_norm") => "self_attn.k_norm",
        (Part::Mlp, "norm") => "post_attention_layernorm",
        (Part::Mlp, "router") => "block_sparse_moe.gate",
        (Part::Mlp, "gate") => "mlp.gate_proj",
        (Part::Mlp, "up") => "mlp.up_proj",
        (Part::Mlp, "down") => "mlp.down_proj",
        (Part::Head, "norm") => "norm",
        _ => return None,
    };
    Some(name.into())
}

/// Whether a tensor that the model does not use is one that checkpoints are known to carry along:
/// rotary frequencies, which follow from the configuration, and a tied head saved a second time.
/// Anything else means that the configuration is not the checkpoint's.
pub(super) fn harmless(name: &str, tied: bool) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
}
