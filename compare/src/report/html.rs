//! A report as one page, which needs nothing but itself: no script, no font, no request.
//!
//! Parts of a report were written by the guests that were measured. All text is escaped, and a policy in
//! the page forbids what could have slipped through.

use std::fmt::Write;

use super::rows::ratio;
use super::{Better, BlastRadius, Evidence, Figure, Kind, Report, Samples, Side, VmStart, number};

const STYLE: &str = include_str!("page.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
/// The least that is drawn of a bar, in percent: what was measured should be seen.
const LEAST_BAR: f64 = 0.6;

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Kind::Vm => "VM",
            Kind::Container => "Container",
        }
    }
}

impl Side {
    /// The style of its bars.
    fn class(self) -> &'static str {
        match self {
            Side::Cold => "cold",
            Side::Warm => "warm",
            Side::Container => "container",
        }
    }

    /// What it is called where a figure depends on how the VM was started, or does not.
    fn title(self, start: VmStart) -> &'static str {
        match (self, start) {
            (Side::Container, _) => "Container",
            (_, VmStart::Warm) => "VM",
            (Side::Cold, VmStart::Cold) => "VM, cold",
            (Side::Warm, VmStart::Cold) => "VM, warm",
        }
    }
}

impl Report {
    /// The page.
    pub fn to_html(&self) -> String {
        let mut page = String::with_capacity(64 << 10);
        // Writing to a string does not fail.
        let _ = self.write_html(&mut page);
        page
    }

    fn write_html(&self, page: &mut String) -> std::fmt::Result {
        write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <link rel=\"icon\" href=\"data:,\">\n\
             <title>Two walls around {image}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
            image = escape(&self.image),
        )?;
        self.write_head(page)?;
        let mut group = "";
        for figure in &self.figures {
            if figure.group != group {
                if !group.is_empty() {
                    page.push_str("</div>\n</section>\n");
                }
                group = &figure.group;
                let group = escape(group);
                write!(
                    page,
                    "<section>\n<h2>{group}</h2>\n<div class=\"charts\">\n"
                )?;
            }
            write_chart(page, figure)?;
        }
        if !group.is_empty() {
            page.push_str("</div>\n</section>\n");
        }
        write_evidence(page, &self.evidence)?;
        if let Some(blast) = &self.blast_radius {
            write_blast(page, blast)?;
        }
        page.push_str("<section>\n<h2>To be known</h2>\n");
        for note in &self.notes {
            writeln!(page, "<p>{}</p>", escape(note))?;
        }
        page.push_str("</section>\n</main>\n");
        // Where there is no JSON there is no page: a report is numbers and strings.
        let json = serde_json::to_string(self).unwrap_or_default();
        write!(
            page,
            "<script type=\"application/json\" id=\"report\">{}</script>\n</body>\n</html>\n",
            escape_json(&json)
        )
    }

    fn write_head(&self, page: &mut String) -> std::fmt::Result {
        let host = &self.host;
        let gib = number(host.memory_bytes as f64 / f64::from(1 << 30));
        write!(
            page,
            "<h1>Two walls around one workload</h1>\n\
             <p>The image <code>{image}</code>, run in a microVM and in a container on the host's \
             kernel, {rounds} in turn, measured and looked into.</p>\n\
             <p class=\"quiet\">{taken} on {processors} x {processor}, {gib} GiB, Linux {kernel}; \
             Bulkhead {version}; {seconds} seconds in all.</p>\n<p>KVM here: {kvm}.</p>\n",
            image = escape(&self.image),
            rounds = match self.rounds {
                1 => "once each".to_owned(),
                n => format!("{n} times each"),
            },
            taken = escape(&self.taken),
            processors = host.processors,
            processor = escape(&host.processor),
            kernel = escape(&host.kernel),
            version = escape(&self.bulkhead),
            seconds = number(self.seconds),
            kvm = escape(&host.kvm_meaning),
        )?;
        for kind in Kind::ALL {
            for error in self.errors.of(kind) {
                let (title, error) = (kind.title(), escape(error));
                writeln!(page, "<p class=\"wrong\">{title}: {error}</p>")?;
            }
        }
        page.push_str("<ul class=\"legend\">\n");
        for side in Side::ALL {
            let text = match side {
                Side::Cold => "VM, cold: one that has booted its own kernel, on a hypervisor",
                Side::Warm => "VM, and VM, warm: a clone of a template, as VMs are by default",
                Side::Container => "Container: namespaces on the host's kernel",
            };
            writeln!(page, "<li><i class=\"{}\"></i>{text}</li>", side.class())?;
        }
        page.push_str("</ul>\n");
        Ok(())
    }
}

fn write_chart(page: &mut String, figure: &Figure) -> std::fmt::Result {
    let better = match figure.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
    };
    let unit = match &*figure.unit {
        "" => better.to_owned(),
        unit => format!("{unit}, {better}"),
    };
    write!(
        page,
        "<figure class=\"chart\" data-id=\"{}\">\n<figcaption><b>{}</b> <span class=\"quiet\">{}</span></figcaption>\n",
        escape(&figure.id),
        escape(&figure.title),
        escape(&unit)
    )?;
    let columns = figure.columns();
    let most = columns
        .iter()
        .filter_map(|column| column.2)
        .map(|samples| samples.most)
        .fold(0.0, f64::max);
    for &(field, side, samples) in &columns {
        let title = side.title(figure.vm_start);
        match samples {
            Some(samples) => write_bar(page, (field, side.class(), title), samples, most)?,
            None => writeln!(
                page,
                "<div class=\"bar\"><span>{title}</span><span class=\"quiet\">not measured</span></div>"
            )?,
        }
    }
    write!(page, "<p>{}", escape(&figure.meaning))?;
    for side in [Side::Cold, Side::Warm] {
        if let Some(times) = figure.ratio_of(side) {
            let (title, times) = (side.title(figure.vm_start), ratio(times));
            write!(page, "; {title} : container = {times}")?;
        }
    }
    page.push_str("</p>\n</figure>\n");
    Ok(())
}

fn write_bar(
    page: &mut String,
    (name, class, title): (&str, &str, &str),
    samples: &Samples,
    most: f64,
) -> std::fmt::Result {
    let percent = |value: f64| match most {
        most if most > 0.0 => (value / most * 100.0).clamp(0.0, 100.0),
        _ => 0.0,
    };
    let shown = number(samples.median);
    writeln!(
        page,
        "<div class=\"bar\" data-kind=\"{name}\"><span>{title}</span>\
         <svg role=\"img\" aria-label=\"{title}: {shown}\">\
         <rect class=\"{class}\" width=\"{width:.2}%\" height=\"100%\"/>\
         <line class=\"range\" x1=\"{least:.2}%\" x2=\"{greatest:.2}%\" y1=\"50%\" y2=\"50%\"/></svg>\
         <span class=\"value\" data-value=\"{exact}\">{shown}</span></div>",
        width = percent(samples.median).max(LEAST_BAR),
        least = percent(samples.least),
        greatest = percent(samples.most),
        exact = samples.median,
    )
}

fn write_evidence(page: &mut String, all: &[Evidence]) -> std::fmt::Result {
    page.push_str(
        "<section>\n<h2>What was seen</h2>\n<div class=\"card\"><table>\n<thead><tr><th></th><th>Host</th>\
         <th>VM</th><th>Container</th><th>What it means</th></tr></thead>\n<tbody>\n",
    );
    for evidence in all {
        let or_dash = |text: &Option<String>| escape(text.as_deref().unwrap_or("-"));
        writeln!(
            page,
            "<tr data-id=\"{}\"><th>{}</th><td data-of=\"Host\">{}</td><td data-of=\"VM\">{}</td>\
             <td data-of=\"Container\">{}</td><td>{}</td></tr>",
            escape(&evidence.id),
            escape(&evidence.title),
            escape(&evidence.host),
            or_dash(&evidence.vm),
            or_dash(&evidence.container),
            escape(&evidence.meaning)
        )?;
    }
    page.push_str("</tbody>\n</table></div>\n</section>\n");
    Ok(())
}

fn write_blast(page: &mut String, blast: &BlastRadius) -> std::fmt::Result {
    page.push_str(
        "<section>\n<h2>What a panic takes down</h2>\n<div class=\"card\"><table>\n<tbody>\n",
    );
    for (what, text) in [
        ("The VM", &blast.victim),
        ("The host", &blast.host),
        ("A VM beside it", &blast.neighbours.vm),
        ("A container beside it", &blast.neighbours.container),
        ("The same in a container", &blast.container),
    ] {
        writeln!(page, "<tr><th>{what}</th><td>{}</td></tr>", escape(text))?;
    }
    page.push_str("</tbody>\n</table></div>\n</section>\n");
    Ok(())
}

/// Text that is nothing but text, in an element as in a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// JSON in which nothing ends the script that it is in. These letters are in strings only, where they may
/// be written so (RFC 8259, section 7).
fn escape_json(json: &str) -> String {
    json.replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn page_when_a_guest_is_hostile_has_no_element_of_its() {
        let page = sample::report().to_html();
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(!page.contains("<img"));
        assert!(!page.contains("onerror=alert(2)>"));
        assert!(page.contains("&lt;img src=x onerror=alert(2)&gt;&quot;&#39;&amp;"));
    }

    #[test]
    fn page_when_its_json_is_read_is_the_report() {
        let report = sample::report();
        let page = report.to_html();
        let start = "<script type=\"application/json\" id=\"report\">";
        let json = page.split_once(start).expect("begin").1;
        let json = json.split_once("</script>").expect("end").0;
        assert_eq!(serde_json::from_str::<Report>(json).expect("JSON"), report);
    }

    #[test]
    fn page_has_a_bar_for_each_figure_of_each_kind_and_says_what_it_means() {
        let mut report = sample::report();
        report.figures[2].container = None;
        report.figures[3].vm_warm = None;
        let page = report.to_html();
        let bars = page.matches("<rect ").count();
        let of_starts = report.figures.iter();
        let of_starts = of_starts.filter(|f| f.vm_start == VmStart::Cold).count();
        // The template is one bar, and two are missing.
        assert_eq!(bars, 2 * report.figures.len() + of_starts - 1 - 2);
        assert_eq!(page.matches("not measured").count(), 2);
        for figure in &report.figures {
            assert!(page.contains(&escape(&figure.meaning)), "{}", figure.id);
        }
        assert!(page.contains("data-value=\"12000\">12,000<"));
        let chart = |id: &str| {
            let start = format!("data-id=\"{id}\"");
            let chart = page.split_once(&*start).expect("a chart").1;
            chart.split_once("</figure>").expect("its end").0.to_owned()
        };
        let start = chart("start_cold");
        for (kind, title) in [
            ("vm", "VM, cold"),
            ("vm_warm", "VM, warm"),
            ("container", "Container"),
        ] {
            let bar = format!("data-kind=\"{kind}\"><span>{title}</span>");
            assert!(start.contains(&bar), "{start}");
        }
        assert!(start.contains("; VM, cold : container = 600x; VM, warm : container = 25.0x<"));
        assert!(start.contains("<rect class=\"warm\" width=\"4.17%\""));
        let running = chart("integer");
        assert!(running.contains("data-kind=\"vm\"><span>VM</span>"));
        assert!(!running.contains("cold") && !running.contains("vm_warm"));
        let template = chart("template");
        assert_eq!(template.matches("class=\"bar\"").count(), 1, "{template}");
        assert!(template.contains("data-value=\"13000\">13,000<"));
    }

    #[test]
    fn page_needs_nothing_but_itself() {
        let page = sample::report().to_html();
        for outside in ["http://", "https://", "src=\"", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn text_when_escaped_moves_no_terminal_and_ends_no_attribute() {
        assert_eq!(
            escape("a\u{1b}[1m\"'<>&\n"),
            "a\u{fffd}[1m&quot;&#39;&lt;&gt;&amp;\n"
        );
    }
}
