//! Who we are for a store, whose certificates are trusted, whose clock counts, and which stores are none.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::guest::Guest;
use super::waits::stopped_at;
use crate::harness::proxy::{Fate, NONE, Proxy};
use crate::harness::repo::Repo;
use crate::harness::run::script;
use crate::harness::store::{
    KEY, READER, address, endpoint, fresh_place, new_repo, tls_authority, tls_endpoint,
};
use crate::harness::{Lab, Outcome, args, qdelta, run};

/// The program, with no credentials but those that `set` leads to.
fn command(arguments: Vec<OsString>, set: &[(&str, &str)]) -> Command {
    let mut command = qdelta(arguments);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.envs(set.iter().copied());
    command
}

fn points(repo: &Repo, set: &[(&str, &str)]) -> Outcome {
    run(command(repo.args(args!["points"]), set))
}

/// The credentials of the tests' store, as clouds and commands tell them.
fn told(id: &str, ends: &str) -> String {
    let secret = KEY.1;
    format!(
        r#"{{"Version":1,"Code":"Success","AccessKeyId":"{id}","SecretAccessKey":"{secret}","Expiration":"{ends}"}}"#
    )
}

#[test]
fn credentials_are_found_where_every_s3_tool_finds_them() {
    let lab = Lab::new();
    let repo = new_repo();
    let (config, credentials) = (lab.path("config"), lab.path("credentials"));
    let files = [
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
    ];
    let said = points(&repo, &[]).fails_with(2);
    assert!(
        said.contains("there are no credentials") && said.contains("AWS_ACCESS_KEY_ID"),
        "{said}"
    );
    let keys = format!("aws_access_key_id={}\naws_secret_access_key={}\n", KEY.0, KEY.1);
    std::fs::write(&credentials, format!("[default]\n{keys}[other]\n{keys}")).unwrap();
    points(&repo, &files).ok();
    let named = |name| [files[0], files[1], ("AWS_PROFILE", name)];
    points(&repo, &named("other")).ok();
    assert!(points(&repo, &named("none")).fails_with(6).contains("no profile \"none\""));
    std::fs::write(&credentials, format!("[default]\n{}", keys.replace(KEY.1, "wrong"))).unwrap();
    assert!(points(&repo, &files).fails_with(1).contains("SignatureDoesNotMatch"));
    std::fs::remove_file(&credentials).unwrap();

    let program = lab.path("tell me");
    script(&program, &format!("#!/bin/sh\n[ \"$1\" = 'a b' ] && echo '{}'", told(KEY.0, "")));
    let write = |command: &str| {
        std::fs::write(&config, format!("[default]\ncredential_process = {command}\n")).unwrap();
    };
    write(&format!("\"{}\" 'a b'", program.display()));
    points(&repo, &files).ok();
    write(&format!("\"{}\" other", program.display()));
    let said = points(&repo, &files).fails_with(1);
    assert!(said.contains("credential_process") && said.contains("exit status: 1"), "{said}");
    write("echo no secret at all");
    let said = points(&repo, &files).fails_with(1);
    assert!(said.contains("told no credentials") && !said.contains("no secret at all"), "{said}");
}

/// A service of a cloud: answers each path with a text, if the header is there that it asks for.
fn service(answers: Vec<(&'static str, &'static str, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut lines = Vec::new();
            for line in BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok) {
                if line.is_empty() {
                    break;
                }
                lines.push(line.to_lowercase());
            }
            let found = answers.iter().find(|(request, header, _)| {
                lines[0].starts_with(&format!("{request} http"))
                    && lines.contains(&(*header).to_owned())
            });
            let (status, body) = found.map_or((404, ""), |(_, _, body)| (200, body));
            let len = body.len();
            let text = format!(
                "HTTP/1.1 {status} x\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
            );
            let _ = client.write_all(text.as_bytes());
        }
    });
    address
}

#[test]
fn the_roles_of_machines_and_containers_are_taken() {
    let repo = new_repo();
    let lab = Lab::new();
    let far = "2999-01-01T00:00:00Z";
    let machine = service(vec![
        ("put /latest/api/token", "x-aws-ec2-metadata-token-ttl-seconds: 21600", "abc".to_owned()),
        (
            "get /latest/meta-data/iam/security-credentials/",
            "x-aws-ec2-metadata-token: abc",
            "backup".to_owned(),
        ),
        (
            "get /latest/meta-data/iam/security-credentials/backup",
            "x-aws-ec2-metadata-token: abc",
            told(KEY.0, far),
        ),
    ]);
    let machine =
        [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &machine)];
    points(&repo, &machine).ok();
    let container = service(vec![("get /role", "authorization: xyz", told(KEY.0, far))]);
    let url = format!("{container}/role");
    let token = lab.path("token");
    std::fs::write(&token, "xyz\n").unwrap();
    let container = |how: &'static str, value: &str| {
        let set = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()), (how, value)];
        points(&repo, &set)
    };
    container("AWS_CONTAINER_AUTHORIZATION_TOKEN", "xyz").ok();
    container("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()).ok();
    let said = container("AWS_CONTAINER_AUTHORIZATION_TOKEN", "other").fails_with(1);
    assert!(said.contains("it answered 404"), "{said}");
}

/// Credentials end in the middle: new ones are asked for, and the run goes on with them.
#[test]
fn credentials_that_end_in_the_middle_are_renewed() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    Repo::init(address(endpoint(), &place));
    let repo = Repo::at(address(&proxy.endpoint, &place));
    let (program, config) = (lab.path("tell"), lab.path("config"));
    // The first ones hold for the first two requests alone.
    let text = format!(
        "#!/bin/sh\necho x >>{0}/calls\nif [ $(wc -l <{0}/calls) = 1 ]; then echo '{1}'; else echo '{2}'; fi",
        lab.dir().display(),
        told("OLD", ""),
        told(KEY.0, ""),
    );
    script(&program, &text);
    std::fs::write(&config, format!("[default]\ncredential_process = {}\n", program.display()))
        .unwrap();
    proxy.judge(|number, _| if number == 0 { Fate::Expired } else { Fate::Pass });
    points(&repo, &[("AWS_CONFIG_FILE", config.to_str().unwrap())]).ok();
    assert_eq!(std::fs::read_to_string(lab.path("calls")).unwrap(), "x\nx\n");
    // Those that nobody can renew are told.
    proxy.judge(|_, _| Fate::Expired);
    let said = points(&repo, &[("AWS_ACCESS_KEY_ID", KEY.0), ("AWS_SECRET_ACCESS_KEY", KEY.1)]);
    assert!(said.fails_with(1).contains("the credentials have ended"));
}

/// A command that hung in the middle was waited for by each request for a minute, and no request to stop was heard.
#[test]
fn a_command_that_hangs_in_the_middle_is_not_waited_for_after_a_stop() {
    let guest = Guest::new(&["full"]);
    let (program, config) = (guest.lab.path("tell"), guest.lab.path("config"));
    let text = format!(
        "#!/bin/sh\necho x >>{0}/calls\nif [ $(wc -l <{0}/calls) = 1 ]; then echo '{1}'; exit; fi\n\
         echo it hangs >&2\nexec sleep 600",
        guest.lab.dir().display(),
        told(KEY.0, ""),
    );
    script(&program, &text);
    std::fs::write(&config, format!("[default]\ncredential_process = {}\n", program.display()))
        .unwrap();
    guest.proxy.judge(|_, seen| match seen.target.contains("/vm/disk/") {
        true => Fate::Expired,
        false => Fate::Pass,
    });
    guest.change();
    let words = args!["backup", guest.image.as_path(), "--disk", "vm/disk", "--format", "raw"];
    let set = [("AWS_CONFIG_FILE", config.to_str().unwrap())];
    let mut backup = command(guest.repo.args(words), &set);
    let (status, said) = stopped_at(&mut backup, "it hangs");
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("the credential_process") && said.contains("was ended"), "{said}");
    assert_eq!(std::fs::read_to_string(guest.lab.path("calls")).unwrap(), "x\nx\n");
    guest.assert_has(&guest.points);
}

/// Who may only read, reads: no lock is written, and no other error made of it.
#[test]
fn credentials_that_may_only_read_are_enough_to_restore() {
    let lab = Lab::new();
    let repo = new_repo();
    let image = crate::harness::images::filled(&lab, "disk.qcow2", "", 1 << 20, 1);
    repo.backup(&image, "vm/disk", &[]);
    let set = [("AWS_ACCESS_KEY_ID", READER.0), ("AWS_SECRET_ACCESS_KEY", READER.1)];
    let output = lab.path("restored.raw");
    run(command(repo.args(args!["restore", "vm/disk", output.as_path()]), &set)).ok();
    run(command(repo.args(args!["verify"]), &set)).ok();
    let backup = repo.args(args!["backup", image.as_path(), "--disk", "vm/disk"]);
    let said = run(command(backup, &set)).fails_with(1);
    assert!(said.contains("AccessDenied") && said.contains("its policy allows"), "{said}");
}

#[test]
fn a_store_with_a_certificate_of_its_own_is_trusted_by_its_authority_alone() {
    let with = |more: &str| {
        PathBuf::from(format!("{}{more}", address(&tls_endpoint(), &fresh_place()).display()))
    };
    let said = run(qdelta(args!["init", with("").as_path()])).fails_with(1);
    assert!(said.contains("certificate") && said.contains("ca=FILE"), "{said}");
    let ca = format!("&ca={}", tls_authority().display());
    let repo = Repo::init(with(&ca));
    repo.run(args!["points"]).ok();
    let lab = Lab::new();
    std::fs::write(lab.path("ca.pem"), "no certificate").unwrap();
    let bad = format!("&ca={}", lab.path("ca.pem").display());
    let said = run(qdelta(args!["init", with(&bad).as_path()])).fails_with(2);
    assert!(said.contains("holds no certificates"), "{said}");
}

/// The program on a host whose clock is shifted.
fn with_clock(shift: &str, arguments: Vec<OsString>) -> Command {
    let mut command = Command::new("faketime");
    command.args(["-f", shift]).arg(crate::harness::run::binary());
    let like = qdelta(arguments);
    command.args(like.get_args());
    for (name, value) in like.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

/// On a host whose clock was ahead `init` refused a store that tells no `Date`: it was said to take what comes too late.
#[test]
fn a_store_without_a_date_is_tried_by_its_own_clock() {
    let proxy = Proxy::new(endpoint());
    proxy.date_ahead.store(NONE, Ordering::SeqCst);
    let place = address(&proxy.endpoint, &fresh_place());
    run(with_clock("+10m", args!["init", place.as_path()])).ok();
}

/// The clock of this host is 20 minutes wrong: the store refuses every signature, and the error says why.
#[test]
fn a_wrong_clock_is_told_as_such() {
    let repo = new_repo();
    for (shift, side) in [("+20m", "min ahead of that"), ("-20m", "min behind that")] {
        let said = run(with_clock(shift, repo.args(args!["points"]))).fails_with(1);
        assert!(said.contains("the clock of this host is") && said.contains(side), "{said}");
        assert!(said.contains("set the clock"), "{said}");
    }
}

/// Each thing that a repository rests on, missing in a store: it is refused, by name, and left as it was.
#[test]
fn a_store_that_keeps_no_conditions_is_refused() {
    for (at, words) in
        [(1, "ignores If-None-Match"), (2, "ignores If-Match"), (3, "whose time is over")]
    {
        let proxy = Proxy::new(endpoint());
        let place = fresh_place();
        let puts = Arc::new(Mutex::new(0));
        proxy.judge(move |_, seen| {
            let mut puts = puts.lock().unwrap();
            let number = *puts;
            *puts += usize::from(seen.method == "PUT");
            if seen.method == "PUT" && number == at { Fate::Nod } else { Fate::Pass }
        });
        let said =
            run(qdelta(args!["init", address(&proxy.endpoint, &place).as_path()])).fails_with(2);
        assert!(said.contains(words), "{said}");
        assert!(Repo::at(address(endpoint(), &place)).files().is_empty());
    }
}

/// A store that could not be reached was waited for three times as long as was asked for, without a word, and
/// then whoever asked was told to remove `qdelta.toml`.
#[test]
fn a_store_that_cannot_be_reached_is_waited_for_once() {
    for endpoint in ["http://127.0.0.1:9", "http://no.such.invalid"] {
        let place = format!("s3://b/p?endpoint={endpoint}&patience=1");
        let repo = Repo::at(PathBuf::from(place));
        let said = repo.run(args!["points"]).fails_with(1);
        assert!(said.contains("see whether the endpoint is right"), "{said}");
        assert!(said.contains("cannot read s3://b/p/qdelta.toml"), "the first request: {said}");
        assert!(!said.contains("remove"), "{said}");
    }
}

#[test]
fn no_repository_is_made_inside_another_one() {
    let repo = new_repo();
    let address = repo.path.to_str().unwrap().replacen('?', "/in/side?", 1);
    let said = run(qdelta(args!["init", address.as_str()])).fails_with(2);
    assert!(said.contains("lies within another repository"), "{said}");
    let said = run(qdelta(args!["init", address.replacen("s3", "S3", 1)])).fails_with(2);
    assert!(said.contains("in small letters"), "{said}");
}
