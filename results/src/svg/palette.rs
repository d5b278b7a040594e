//! Colours: what an operation works on decides its colour, the lane says the rest.
//!
//! Fourteen kinds cannot have fourteen colours that everybody can tell apart. Within a lane, though, a
//! family determines the kind: weights on the disk lane are read, weights on H2D are loaded.

use pipo_plan::schedule::OpKind;

/// A family of operations that share a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    Weights,
    Cache,
    Hidden,
    Compute,
    Decompress,
    CpuCompute,
    Gather,
    Barrier,
}

impl Family {
    pub(super) const ALL: [Self; 8] = [
        Self::Weights,
        Self::Cache,
        Self::Hidden,
        Self::Compute,
        Self::Decompress,
        Self::CpuCompute,
        Self::Gather,
        Self::Barrier,
    ];

    pub(super) fn of(kind: OpKind) -> Self {
        match kind {
            OpKind::ReadWeights | OpKind::StageWeights | OpKind::LoadWeights => Self::Weights,
            OpKind::ReadCache | OpKind::WriteCache | OpKind::LoadCache | OpKind::SaveCache => {
                Self::Cache
            }
            OpKind::LoadHidden | OpKind::SaveHidden => Self::Hidden,
            OpKind::Compute => Self::Compute,
            OpKind::Decompress => Self::Decompress,
            OpKind::CpuCompute => Self::CpuCompute,
            OpKind::Gather => Self::Gather,
            OpKind::Barrier => Self::Barrier,
        }
    }

    /// As the legend says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights moved",
            Self::Cache => "KV cache moved",
            Self::Hidden => "hidden states moved",
            Self::Compute => "kernels",
            Self::Decompress => "decompression",
            Self::CpuCompute => "compute on CPU",
            Self::Gather => "embedding lookup",
            Self::Barrier => "barrier",
        }
    }

    /// Class of its shapes in [`STYLE`].
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Weights => "w",
            Self::Cache => "k",
            Self::Hidden => "h",
            Self::Compute => "c",
            Self::Decompress => "d",
            Self::CpuCompute => "u",
            Self::Gather => "g",
            Self::Barrier => "b",
        }
    }

    /// Class of text upon its shapes: white only where black would be hard to read.
    pub(super) fn text_class(self) -> &'static str {
        match self {
            Self::Weights | Self::Barrier => "on-dark",
            _ => "on-light",
        }
    }
}

/// Colours by class: Okabe and Ito's for what is shown, greys for the rest, twice.
pub(super) const STYLE: &str = "
text{font-family:Helvetica,Arial,'Liberation Sans','DejaVu Sans',sans-serif;font-size:12px;fill:#1c2126}
.title{font-size:19px;font-weight:bold}.sub{font-size:13px}.head{font-size:13px;font-weight:bold}.note{font-size:12px;font-weight:normal}
.small{font-size:11px}.sub,.mut{fill:#59636e}.bg{fill:#fff}.row{fill:#f3f5f7}
.grid{stroke:#d8dee4;stroke-width:1}.edge{stroke:#8c959f;stroke-width:1}
.frame{stroke:#1c2126;stroke-width:1.2;fill:none}.zoom{fill:#1c2126;fill-opacity:.05}
.finish{stroke:#1c2126;stroke-width:1.5;stroke-dasharray:4 3}
.pre{fill:#d3d9e0}.dec{fill:#e9edf1}
.w{fill:#0072b2}.k{fill:#cc79a7}.h{fill:#56b4e9}.c{fill:#009e73}
.d{fill:#d55e00}.u{fill:#e69f00}.g{fill:#f0e442}.b{fill:#59636e}
.op{stroke:#fff;stroke-width:.6}.on-dark{font-size:11px;fill:#fff}.on-light{font-size:11px;fill:#000}
.area{fill-opacity:.28}.m{fill:none;stroke-width:1.3}
.nvml{fill:#59636e;stroke:#3d454d}.kernel{fill:#009e73;stroke:#00785a}
.link{fill:#0072b2;stroke:#0072b2}.disk{fill:#cc6a00;stroke:#b35c00}
.m.nvml,.m.kernel,.m.link,.m.disk{fill:none}.area.nvml,.area.kernel,.area.link,.area.disk{stroke:none}
@media (prefers-color-scheme:dark){
text{fill:#e6e9ec}.sub,.mut{fill:#9aa5b1}.bg{fill:#14181d}.row{fill:#1c2229}
.grid{stroke:#303841}.edge{stroke:#69737e}.frame{stroke:#e6e9ec}.zoom{fill:#fff;fill-opacity:.07}
.finish{stroke:#e6e9ec}.pre{fill:#3a444f}.dec{fill:#262e36}.b{fill:#87919c}.w{fill:#2a8fd0}
.op{stroke:#14181d}.on-light,.on-dark{fill:#000}
.area{fill-opacity:.4}.nvml{fill:#9aa5b1;stroke:#c5ccd3}.kernel{stroke:#2cc79b}
.link{fill:#2a8fd0;stroke:#56b4e9}.disk{fill:#e08a2b;stroke:#e69f00}}
";
