//! Reads a Hugging Face `config.json`.
//!
//! The aim is to see what transformers would see: a key that is missing takes the default of that
//! family's configuration class where the class has one that says something about the model, and the
//! sizes that make a model what it is must be there. Keys that are not known are normal and ignored.

use serde_json::{Map, Value};

use super::check::{self, Flaw};
use super::{AttentionBias, Experts, Family, Model};
use crate::diagnostic::{Diagnostic, Document};

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

const HELP: &str = "download config.json again from the model's Hugging Face page";

impl Model {
    /// Reads the sizes from a Hugging Face `config.json` and checks them.
    pub fn from_config(document: &Document) -> Result<Self> {
        let keys = document.parse_json::<Map<String, Value>>()?;
        let family = family(document, &keys)?;
        let config = Config { document, keys, family };
        let model = config.model()?;
        model.check_named(|field| key(family, field)).map_err(|flaw| config.flaw(&flaw))?;
        Ok(model)
    }
}

fn family(document: &Document, keys: &Map<String, Value>) -> Result<Family> {
    let known = Family::ALL.map(Family::name).join(", ");
    let Some(value) = keys.get("model_type") else {
        return Err(document.whole(
            "`model_type` is missing",
            &format!("is this a model's config.json? pipo knows the model types {known}"),
        ));
    };
    Family::ALL.into_iter().find(|f| value.as_str() == Some(f.name())).ok_or_else(|| {
        document.at_path(
            "model_type",
            format!("`model_type` is {}, which pipo does not know", shown(value)),
            &format!("the model types it knows are {known}"),
        )
    })
}

/// What a field of [`Model`] is called in a `config.json`.
fn key(family: Family, field: &'static str) -> &'static str {
    match field {
        "layers" => "num_hidden_layers",
        "hidden" => "hidden_size",
        "heads" => "num_attention_heads",
        "kv_heads" => "num_key_value_heads",
        "ffn" if family == Family::Opt => "ffn_dim",
        "ffn" => "intermediate_size",
        "vocab" => "vocab_size",
        "max_context" => "max_position_embeddings",
        "experts.count" => "num_local_experts",
        "experts.active" => "num_experts_per_tok",
        "embedding_width" => "word_embed_proj_dim",
        same => same,
    }
}

struct Config<'a> {
    document: &'a Document,
    keys: Map<String, Value>,
    family: Family,
}

impl Config<'_> {
    fn model(&self) -> Result<Model> {
        let opt = self.family == Family::Opt;
        self.refuse_variants()?;

        let layers = self.count("layers", check::MAX_LAYERS)?;
        let hidden = self.size("hidden", check::MAX_HIDDEN)?;
        let heads = self.count("heads", check::MAX_HEADS)?;
        let max_context = self.size("max_context", check::MAX_CONTEXT)?;
        let width = if opt { self.number("word_embed_proj_dim")? } else { None };
        Ok(Model {
            name: self.name(),
            source: self.document.name.clone(),
            family: self.family,
            layers,
            hidden,
            heads,
            kv_heads: self.kv_heads(heads)?,
            head_dim: self.head_dim(hidden, heads)?,
            ffn: self.size("ffn", check::MAX_FFN)?,
            vocab: self.size("vocab", check::MAX_VOCAB)?,
            // OPT looks positions up at an offset of 2, a remnant of the padding token's place.
            positions: if opt { max_context + 2 } else { 0 },
            max_context,
            tied_embeddings: self.flag("tie_word_embeddings", opt)?,
            attention_bias: self.attention_bias()?,
            mlp_bias: match self.family {
                Family::Opt => self.flag("enable_bias", true)?,
                Family::Llama => self.flag("mlp_bias", false)?,
                _ => false,
            },
            post_norm: opt && !self.flag("do_layer_norm_before", true)?,
            embedding_width: width.filter(|&width| width != hidden),
            sliding_window: self.sliding_window(layers)?,
            experts: self.experts()?,
        })
    }

    /// Variants of OPT whose tensors would be counted wrongly.
    fn refuse_variants(&self) -> Result<()> {
        for (key, usual) in
            [("_remove_final_layer_norm", false), ("layer_norm_elementwise_affine", true)]
        {
            if self.family == Family::Opt && self.flag(key, usual)? != usual {
                return Err(self.document.at_path(
                    key,
                    format!("`{key}` is {}, pipo supports {usual} only", !usual),
                    "use a checkpoint of OPT in its published form",
                ));
            }
        }
        Ok(())
    }

    fn kv_heads(&self, heads: u32) -> Result<u32> {
        // transformers: absent means the class's own default, null means one for each head.
        let absent = match self.family {
            Family::Mistral | Family::Mixtral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
            Family::Opt | Family::Llama => heads,
        };
        match self.keys.get("num_key_value_heads") {
            _ if self.family == Family::Opt => Ok(heads),
            None => Ok(absent),
            Some(Value::Null) => Ok(heads),
            Some(_) => self.count("kv_heads", check::MAX_HEADS),
        }
    }

    fn head_dim(&self, hidden: u64, heads: u32) -> Result<u64> {
        let given = if self.family == Family::Opt { None } else { self.number("head_dim")? };
        match given {
            Some(width) => Ok(width),
            None if self.family == Family::Qwen3 => Ok(128),
            None if hidden.is_multiple_of(heads.into()) => Ok(hidden / u64::from(heads)),
            None => Err(self.document.at_path(
                "hidden_size",
                format!(
                    "`hidden_size` is {hidden}, not a multiple of `num_attention_heads` = {heads}"
                ),
                HELP,
            )),
        }
    }

    fn attention_bias(&self) -> Result<AttentionBias> {
        let all = match self.family {
            Family::Qwen2 => return Ok(AttentionBias::Qkv),
            Family::Opt => self.flag("enable_bias", true)?,
            Family::Llama | Family::Qwen3 => self.flag("attention_bias", false)?,
            Family::Mistral | Family::Mixtral => false,
        };
        Ok(if all { AttentionBias::All } else { AttentionBias::None })
    }

    fn sliding_window(&self, layers: u32) -> Result<Option<u64>> {
        match self.family {
            Family::Opt | Family::Llama => Ok(None),
            // The class's default is a window, so that leaving the key out is not the same as null.
            Family::Mistral if !self.keys.contains_key("sliding_window") => Ok(Some(4096)),
            Family::Mistral | Family::Mixtral => self.number("sliding_window"),
            Family::Qwen2 | Family::Qwen3 => {
                if !self.flag("use_sliding_window", false)? {
                    return Ok(None);
                }
                // Layers from `max_window_layers` on slide, those before it see everything.
                match self.number("max_window_layers")?.unwrap_or(28) {
                    0 => Ok(Some(self.number("sliding_window")?.unwrap_or(4096))),
                    full if full >= u64::from(layers) => Ok(None),
                    full => Err(self.document.at_path(
                        "use_sliding_window",
                        format!("{full} of {layers} layers see everything and the others slide: pipo needs one rule for all"),
                        "set `use_sliding_window` to false to plan with the whole cache in every layer",
                    )),
                }
            }
        }
    }

    fn experts(&self) -> Result<Option<Experts>> {
        if self.family != Family::Mixtral {
            return Ok(None);
        }
        let count = self.count("experts.count", check::MAX_EXPERTS)?;
        let active = self.count("experts.active", check::MAX_EXPERTS)?;
        Ok(Some(Experts { count, active }))
    }

    /// A size that must be there, by its name in [`Model`].
    fn size(&self, field: &'static str, limit: u64) -> Result<u64> {
        let key = key(self.family, field);
        let Some(value) = self.number(key)? else {
            return Err(self.document.at_path(
                "model_type",
                format!("`{key}` is missing, and a model of type `{}` needs it", self.family),
                HELP,
            ));
        };
        check::within(key, value, limit).map_err(|flaw| self.flaw(&flaw))?;
        Ok(value)
    }

    /// The same for a small number; `limit` lies far below 2^32.
    fn count(&self, field: &'static str, limit: u64) -> Result<u32> {
        self.size(field, limit).map(|value| u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// A whole number; absent and null are the same.
    fn number(&self, key: &'static str) -> Result<Option<u64>> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| self.mistyped(key, value, "a whole number without sign or quotes")),
        }
    }

    fn flag(&self, key: &'static str, absent: bool) -> Result<bool> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(absent),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.mistyped(key, value, "true or false"))
            }
        }
    }

    fn mistyped(&self, key: &'static str, value: &Value, needed: &str) -> Box<Diagnostic> {
        let message = format!("`{key}` is {}, {needed} is needed", shown(value));
        self.document.at_path(key, message, HELP)
    }

    fn flaw(&self, flaw: &Flaw) -> Box<Diagnostic> {
        flaw.in_document(self.document, "")
    }

    /// A `config.json` has no name of its own. The folder it lies in is what its owner calls it;
    /// `_name_or_path` is often that of the model it was derived from, and comes second.
    fn name(&self) -> String {
        let folder = folder_name(&self.document.name);
        let original = self.keys.get("_name_or_path").and_then(Value::as_str);
        let original = original.and_then(|path| path.rsplit('/').find(|part| !part.is_empty()));
        let name = folder.or(original).unwrap_or_else(|| self.family.name());
        let name: String = name.chars().filter(|c| !c.is_control()).take(50).collect();
        if name.is_empty() { self.family.name().to_owned() } else { name }
    }
}

/// The folder that names the model: `models--org--NAME/snapshots/REVISION/` in the Hub's cache,
/// otherwise the innermost.
fn folder_name(path: &str) -> Option<&str> {
    let (folder, _) = path.rsplit_once(['/', '\\'])?;
    let mut parts = folder.rsplit(['/', '\\']).filter(|part| !matches!(*part, "" | "." | ".."));
    let innermost = parts.next()?;
    match (parts.next(), parts.next()) {
        (Some("snapshots"), Some(cached)) => cached.rsplit("--").next(),
        _ => Some(innermost),
    }
}

/// A value as it stands in the file, cut to what fits in a line.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 {
        return text;
    }
    text.chars().take(40).chain("...".chars()).collect()
}
