//! The page of `qdelta report`: its words are those of the JSON, no name becomes markup, and it is
//! small whatever the fleet.

use qdelta::base::duration;
use qdelta::flows::page::{Pictures, page};
use qdelta::flows::report::FleetReport;
use serde_json::json;

use super::*;

/// The guest whose name is meant to become markup.
const EVIL: &str = "d<img src=x onerror=\"alert('1')\">&amp;";

/// The text of markup: without tags, entities as what they stand for.
fn text_of(markup: &str) -> String {
    let mut text = String::new();
    let mut rest = markup;
    while let Some((before, after)) = rest.split_once('<') {
        text += before;
        text.push(' ');
        rest = after.split_once('>').map_or("", |(_, rest)| rest);
    }
    text += rest;
    for (entity, sign) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
    {
        text = text.replace(entity, sign);
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The texts of all elements of a kind in a part of the page.
fn texts(page: &str, id: &str, element: &str) -> Vec<String> {
    let part = page.split(&format!("id=\"{id}\"")).nth(1).unwrap_or_else(|| panic!("no {id}"));
    let part = part.split("</section>").next().unwrap();
    let (begin, end) = (format!("<{element}"), format!("</{element}>"));
    part.split(&begin)
        .skip(1)
        .map(|piece| piece.split(&end).next().unwrap())
        .map(|piece| text_of(piece.split_once('>').map_or("", |(_, rest)| rest)))
        .collect()
}

fn word(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no {field}: {value}")).to_owned()
}

/// How long before a report something was, as people read it.
fn ago(at: &Value, then: &Value) -> String {
    let second =
        |time: &Value| time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    format!("{} ago", duration::age(second(at) - second(then)))
}

#[track_caller]
fn assert_true(page: &str, fleet: &Value) {
    let status = &fleet["status"];
    let head = text_of(page.split("</header>").next().unwrap().split("<body>").nth(1).unwrap());
    assert!(head.contains(&word(status, "level").to_uppercase()), "{head}");
    let findings = status["findings"].as_array().unwrap();
    if findings.is_empty() {
        assert!(head.contains("everything is all right"), "{head}");
    } else {
        let rows = texts(page, "findings", "tr");
        assert_eq!(rows.len(), findings.len() + 1);
        for (row, finding) in rows.iter().skip(1).zip(findings) {
            let wanted = [&word(finding, "level").to_uppercase(), &word(finding, "subject")];
            assert!(wanted.iter().all(|it| row.contains(*it)), "{row}: {finding}");
            assert!(row.contains(&word(finding, "text")), "{row}: {finding}");
        }
    }
    // Each guest, in the order of the JSON.
    let guests = status["guests"].as_array().unwrap();
    let rows = texts(page, "guests", "tr");
    assert_eq!(rows.len(), guests.len() + 1);
    for ((row, guest), more) in
        rows.iter().skip(1).zip(guests).zip(fleet["guests"].as_array().unwrap())
    {
        assert_eq!(guest["guest"], more["guest"]);
        let newest = match &guest["newest_at"] {
            Value::Null => "none".to_owned(),
            time => ago(&status["at"], time),
        };
        let gap = more["gap"].as_f64().map_or("-".to_owned(), |gap| duration::age(gap as i64));
        let proved = match &guest["proved_at"] {
            Value::Null => "never".to_owned(),
            time => ago(&status["at"], time),
        };
        let start = format!(
            "{} {} {newest} {} {gap} {proved}",
            word(guest, "guest"),
            word(guest, "level").to_uppercase(),
            guest["rpo"].as_str().unwrap_or("-"),
        );
        assert!(row.starts_with(&start), "{row} does not begin with {start}");
        let shown = more["points"].as_array().unwrap().len();
        let all = shown as u64 + more["older"].as_u64().unwrap();
        assert_eq!(guest["points"].as_u64().unwrap(), all, "{guest}");
        assert!(shown == 0 || row.contains(&format!(" {shown} points")), "{row}");
    }
    // Each day.
    let days = texts(page, "calendar", "title");
    let wanted = fleet["days"].as_array().unwrap();
    assert_eq!(days.len(), wanted.len());
    for (shown, day) in days.iter().zip(wanted) {
        let made = day["made"].as_u64().unwrap();
        let plural = if made == 1 { "" } else { "s" };
        let mut text = format!("{}: {made} backup{plural} made", word(day, "day"));
        for (field, what) in
            [("warned", "with warnings"), ("failed", "failed"), ("others_failed", "other failures")]
        {
            let count = day[field].as_u64().unwrap();
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        assert_eq!(*shown, text);
    }
    // Each site.
    let shown = texts(page, "sites", "h3");
    let paragraphs =
        text_of(page.split("id=\"sites\"").nth(1).unwrap().split("</section>").next().unwrap());
    let marks = page.split("<div class=\"site ").skip(1).map(|it| it.split('"').next().unwrap());
    for ((heading, mark), site) in shown.iter().zip(marks).zip(fleet["sites"].as_array().unwrap()) {
        assert!(heading.contains(&word(site, "site")), "{heading}");
        let is_whole = |left: &Value| left["without"] == json!([]);
        let all = site["nothing_left"] == json!([])
            && site["left"].as_array().unwrap().iter().all(is_whole);
        assert_eq!(mark, if all { "ok" } else { "cr" }, "{heading}");
        for guest in site["nothing_left"].as_array().unwrap() {
            assert!(paragraphs.contains(guest.as_str().unwrap()), "{guest} in {paragraphs}");
        }
        let left = site["left"].as_array().unwrap();
        let worst = left.iter().map(|it| it["age"].as_f64().unwrap()).reduce(f64::max);
        if let Some(worst) = worst {
            let guests = if left.len() == 1 {
                "1 guest would"
            } else {
                &format!("{} guests would", left.len())
            };
            assert!(paragraphs.contains(guests), "{guests} in {paragraphs}");
            assert!(paragraphs.contains(&duration::age(worst as i64)), "{worst} in {paragraphs}");
        }
    }
}

/// Nothing runs and nothing is fetched, whatever guests are called.
#[track_caller]
fn assert_harmless(page: &str, pictures: usize) {
    let lower = page.to_lowercase();
    for bad in ["<script", "<link", "<iframe", "<object", "javascript:", "@import", "url("] {
        assert!(!lower.contains(bad), "{bad}");
    }
    assert_eq!(lower.matches("<img").count(), pictures);
    assert_eq!(lower.matches(" src=\"data:image/").count(), pictures);
    // No attribute of ours is a handler; those in names have lost their signs.
    for tag in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        assert!(!tag.contains(" on") && !tag.contains("href"), "<{tag}>");
    }
    assert!(page.ends_with("</body></html>\n"));
}

#[test]
fn the_words_of_the_page_are_those_of_the_json() {
    let night = Night::new();
    let safe = EVIL.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let xml = fs::read_to_string(night.definition("db")).unwrap();
    let xml =
        xml.replace("<name>db</name>", &format!("<name>{safe}</name>")).replace("db1801", "db1844");
    fs::write(night.lab.path(format!("etc/qemu/{EVIL}.xml")), xml).unwrap();
    fs::remove_file(night.definition("db")).unwrap();
    let drill = "[jobs.production.drill]\nschedule = \"Mon 03:00\"\nto = \"bytes\"";
    night.configure("", drill);
    night.run("2026-10-18 10:00:00");
    for day in ["19", "20", "22"] {
        night.run(&format!("2026-10-{day} 01:05:00"));
    }
    fs::rename(night.image("mail", "vda"), night.lab.path("away")).unwrap();
    night.run("2026-10-23 01:05:00");
    let file = night.lab.path("page.html");
    let time = "2026-10-23 09:30:00";
    let words = args!["report", file.as_path(), "--days", "40", "--json"];
    let outcome = night.at(time, words.clone());
    assert_eq!(outcome.code(), Some(17), "{}", outcome.report());
    let fleet = outcome.json();
    // What is in the status has an example of its own.
    let mut without = fleet.clone();
    for field in ["findings", "guests", "jobs", "repositories"] {
        without["status"][field] = json!([]);
    }
    for guest in without["guests"].as_array_mut().unwrap() {
        let is_drilled = guest["guest"] != "mail";
        assert_eq!(guest["drill"]["result"] == "passed", is_drilled, "{guest}");
        guest["drill"] = Value::Null;
    }
    let typed: FleetReport = serde_json::from_value(fleet.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), fleet);
    compare(
        "report",
        &[&without],
        &[
            ".guests[].frozen_ms_max",
            ".repositories[].full_at",
            ".sites[].nothing_left",
            ".sites[].nothing_left[]",
            ".sites[].left[]",
            ".sites[].left[].guest",
            ".sites[].left[].repository",
            ".sites[].left[].age",
            ".sites[].left[].without",
        ],
    );
    let page = fs::read_to_string(&file).unwrap();
    assert_true(&page, &fleet);
    assert_harmless(&page, 0);
    assert!(text_of(&page).contains(EVIL), "the name is there, as text");
    // It says what status says.
    let status = night.at(time, args!["status", "--json"]).json();
    for field in ["level", "findings", "guests", "jobs"] {
        assert_eq!(fleet["status"][field], status[field], "{field}");
    }
    let days = &fleet["guests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["guest"] == "mail")
        .unwrap()["days"];
    assert!(days.as_str().unwrap().ends_with("-dd-df"), "{days}");
    // Nobody's page is replaced unasked.
    night.at(time, args!["report", file.as_path()]).fails_with(7);
    let outcome = night.at(time, args!["report", file.as_path(), "--force"]);
    assert_eq!(outcome.code(), Some(17));
    let printed = night.at(time, args!["report", "-", "--days", "40"]).text();
    // How much is free may have changed.
    let before_room = |page: &str| text_of(page.split("<h2>Room").next().unwrap());
    assert_eq!(before_room(&printed), before_room(&page));
}

/// A fleet of 500 guests with all that can be shown of them.
fn large() -> Value {
    let at = "2026-11-24T08:00:00.412Z";
    let mut guests = Vec::new();
    let mut standing = Vec::new();
    let mut state = 7_u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
        (state >> 16) % below
    };
    for number in 0..500 {
        let name = format!("{}-{number:03}", ["web", "db", "office", "mail"][number % 4]);
        let late = random(60) == 0;
        let day = if late { 21 } else { 24 };
        let letter = |at: u32| match at {
            0 => 'f',
            1 => '-',
            2..=4 => 'w',
            _ => 'd',
        };
        let days: String = (0..90).map(|_| letter(random(90))).collect();
        let point = |back: u32| {
            let day = 24 - back % 24;
            json!({
                "point": format!("2026{:02}{:02}T0130{:02}.118Z", 11 - back / 24, day, back % 60),
                "full": back % 14 == 13, "good": back != 7 || !late, "proved": back > 0,
                "bytes": 20_000_000 + u64::from(back) * 1_000_000,
            })
        };
        let drill = json!({
            "began": "2026-11-22T05:00:02Z", "point": "20261121T013009.118Z", "roots": {},
            "steps": [], "reached": "agent", "wanted": "agent",
            "result": if late { "failed" } else { "passed" }, "age": 100.0, "gap": 86400.0,
            "recovery": 41.2, "missed": if late { json!(["the agent answered after 5:41 min, and RTO is 5m"]) } else { json!([]) },
            "screenshot": null, "console": null, "seconds": 50.0
        });
        guests.push(json!({
            "guest": name, "repository": "main", "days": days, "gap": 90_000.0,
            "points": (0..60).rev().map(point).collect::<Vec<_>>(), "older": 31,
            "freezes": 90, "frozen_ms_max": 20 + random(400),
            "drill": if number % 25 == 0 { drill } else { Value::Null },
        }));
        standing.push(json!({
            "guest": name, "job": "production", "level": if late { "critical" } else { "ok" },
            "points": 91, "newest": "20261124T013009.118Z", "newest_at": format!("2026-11-{day}T01:30:09.118Z"),
            "oldest_at": "2026-01-08T01:30:07Z", "safe_until": null, "frozen_ms": 41, "rpo": "26h",
            "proved_at": "2026-11-24T02:11:51Z", "never_proved": 1,
            "drilled_at": "2026-11-22T05:00:02.004Z", "drilled": if late { "failed" } else { "passed" },
            "recovery": 41.2, "rto": "15m", "copies": [],
        }));
    }
    let late = standing.iter().filter(|it| it["level"] == "critical");
    let findings: Vec<Value> = late
        .map(|it| {
            json!({
                "level": "critical", "code": "rpo", "subject": it["guest"], "job": "production", "act": null,
                "text": "its newest good point is 3 d old, and its RPO is 26h",
                "advice": format!("qdelta history --guest {} says what happened", it["guest"].as_str().unwrap()),
                "since": "2026-11-21T01:30:09.118Z",
            })
        })
        .collect();
    let days: Vec<Value> = (0..90_u32)
        .map(|at| {
            let date = "2026-08-27".parse::<jiff::civil::Date>().unwrap();
            let date = date.checked_add(jiff::Span::new().days(i64::from(at))).unwrap();
            let failed = if at % 17 == 3 { 4 } else { 0 };
            json!({
                "day": date.to_string(), "made": if at == 40 { 0 } else { 500 - failed }, "warned": if at % 11 == 5 { 2 } else { 0 },
                "failed": failed, "others_failed": 0,
            })
        })
        .collect();
    let left: Vec<Value> = guests
        .iter()
        .skip(3)
        .map(|it| json!({ "guest": it["guest"], "repository": "main", "age": 23_391.0, "without": [] }))
        .collect();
    let mut halves = left.clone();
    halves[0]["without"] = json!(["vdb"]);
    let nothing: Vec<Value> = guests.iter().take(3).map(|it| it["guest"].clone()).collect();
    json!({
        "host": "kvm1", "since": "2026-08-27T10:00:00Z", "time_zone": "Europe/Berlin",
        "status": {
            "at": at, "level": "critical", "findings": findings, "guests": standing,
            "jobs": [{ "job": "production", "acts": [
                { "act": "backup", "last": "2026-11-24T01:30:04.231Z", "end": "failed", "success": "2026-11-21T01:30:04.511Z", "next": "2026-11-25T01:30:00Z" },
                { "act": "verify", "last": "2026-11-24T02:30:04.231Z", "end": "done", "success": "2026-11-24T02:30:04.511Z", "next": null }
            ] }],
            "repositories": [
                { "repository": "main", "place": "/mnt/backup/repo", "bytes_free": 90_194_313_216_u64, "keep_free": 21_474_836_480_u64, "bytes_stored": 318_418_092_032_u64, "bytes_per_day": 884_902_144, "days_left": 101.4 },
                { "repository": "away", "place": "s3://backups/kvm1", "bytes_free": null, "keep_free": null, "bytes_stored": 118_418_092_032_u64, "bytes_per_day": null, "days_left": null }
            ],
            "timer": "on",
        },
        "days": days, "guests": guests,
        "repositories": [
            { "repository": "main", "on_this_host": true, "bytes": (0..90_u64).map(|at| 240_000_000_000 + at * 880_000_000 + (at % 7) * 300_000_000).collect::<Vec<_>>(), "full_at": "2027-03-05T17:36:00Z" },
            { "repository": "away", "on_this_host": false, "bytes": (0..90_u64).map(|at| at * 1_300_000_000).collect::<Vec<_>>(), "full_at": null }
        ],
        "sites": [
            { "site": "kvm1", "host": true, "repositories": ["main"], "nothing_left": nothing, "left": left },
            { "site": "main", "host": false, "repositories": ["main"], "nothing_left": [], "left": left },
            { "site": "away", "host": false, "repositories": ["away"], "nothing_left": [], "left": halves }
        ],
    })
}

#[test]
fn a_page_of_500_guests_is_true_and_small() {
    let fleet = large();
    let typed: FleetReport = serde_json::from_value(fleet.clone()).unwrap();
    // Pictures that are none, and more of them than there is room for.
    let noise: Vec<u8> =
        (0..40_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let png = |len: usize| [&b"\x89PNG\r\n\x1a\n"[..], &noise[..len]].concat();
    let mut pictures = Pictures::new();
    for (at, guest) in typed.guests.iter().filter(|it| it.drill.is_some()).enumerate() {
        let picture = if at == 1 { b"<svg onload=alert(1)>".to_vec() } else { png(40_000) };
        pictures.insert(guest.guest.clone(), picture);
    }
    let shown = page(&typed, &pictures);
    // Whoever wants to look at it finds it there.
    fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/page.html"), &shown).unwrap();
    assert!(shown.len() <= 1 << 20, "{} bytes", shown.len());
    assert_true(&shown, &fleet);
    let pictures = shown.matches("<img").count();
    assert!((3..typed.guests.len() / 25).contains(&pictures), "{pictures}");
    assert_harmless(&shown, pictures);
}
