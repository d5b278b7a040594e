//! Writes pictures for a person to look at: `PIPO_GALLERY=DIR cargo test -p pipo-results gallery`.

use crate::chart::{Scale, bar_chart, line_chart};
use crate::sample::{self, LAPTOP, Shape};
use crate::svg::{Compared, Excerpt, Picture, comparison, timeline};

#[test]
fn gallery() {
    let Ok(folder) = std::env::var("PIPO_GALLERY") else { return };
    let save = |name: &str, svg: &str| std::fs::write(format!("{folder}/{name}.svg"), svg).unwrap();
    let title = "8-billion-parameter model, int4, 6 GB budget on an RTX 3060 laptop GPU";
    let subtitle = "predicted; granularity attention/MLP, 2 GPU buffers, prompt 512, 32 new tokens";
    let picture = |excerpt| Picture { title, subtitle, excerpt };
    let run = sample::pipeline(LAPTOP);
    save("short", &timeline(&sample::two_tokens(), &picture(Excerpt::Auto)));
    save("run", &timeline(&run, &picture(Excerpt::Auto)));
    save("dense", &timeline(&run, &picture(Excerpt::Whole)));
    let one = sample::pipeline(Shape { slots: 1, ..LAPTOP });
    let compared = [
        Compared { name: "one buffer", note: "0.71 tokens/s", timeline: &one },
        Compared { name: "tuned", note: "0.92 tokens/s", timeline: &run },
    ];
    save("comparison", &comparison("One buffer against the tuned plan", subtitle, &compared));
    let long = Shape { layers: 96, micros: 12, decode_passes: 65, ..LAPTOP };
    save("long", &timeline(&sample::pipeline(long), &picture(Excerpt::Auto)));
}

#[test]
fn charts() {
    let Ok(folder) = std::env::var("PIPO_GALLERY") else { return };
    let save = |name: &str, svg: &str| std::fs::write(format!("{folder}/{name}.svg"), svg).unwrap();
    save("bars-linear", &bar_chart(&sample::bars(Scale::Linear)));
    save("bars-log", &bar_chart(&sample::bars(Scale::Log)));
    save("lines", &line_chart(&sample::lines()));
}
