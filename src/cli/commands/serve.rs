//! `qdelta serve`: points as disks for others.

use qdelta::flows::report::ServeReport;
use qdelta::flows::serve::{Place, ServeRequest, Server, Wanted};
use qdelta::vault::repository::Selector;
use qdelta::{Error, ErrorKind, Result};

use super::restore;
use crate::cli::serve_args::Serve;
use crate::cli::{Context, signals, status, text};

/// Serves until somebody asks to stop.
pub fn run(args: Serve, context: &mut Context) -> Result<u8> {
    let repository = context.readable()?;
    let wanted = match args.domain {
        Some(domain) => Wanted::Guest(domain, args.at.unwrap_or(Selector::Latest)),
        None if args.disks.is_empty() => Wanted::Everything,
        None => Wanted::Disks(args.disks),
    };
    let cores = || std::thread::available_parallelism().map_or(2, usize::from);
    let threads = args.threads.unwrap_or_else(|| cores().clamp(2, 8));
    if let Some(scratch) = &args.scratch {
        restore::refuse_inside(&repository, scratch)?;
    }
    let network = args.listen.zip(args.tls_psk);
    let mut places: Vec<_> =
        network.map(|(at, keys)| Place::Network(at, keys)).into_iter().collect();
    places.extend(args.socket.map(Place::Socket));
    if places.is_empty() {
        places.push(Place::Inherited(sockets_given()?));
    }
    let cancel = signals::watch(&context.screen);
    let request = ServeRequest { wanted, places, scratch: args.scratch, threads };
    let server = Server::open(repository, &request, &context.screen, &cancel)?;
    if context.out.json {
        context.out.json(server.report())?;
    } else if !context.out.quiet {
        show(server.report(), context)?;
    }
    // Whoever started the server waits for what it serves.
    context.out.flush()?;
    server.run(&context.screen, &cancel)?;
    Ok(status::DONE)
}

/// How many sockets systemd has opened for this process.
fn sockets_given() -> Result<u32> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").filter(|count| is_ours && *count > 0);
    count.ok_or_else(|| {
        Error::new(ErrorKind::Usage, "say where clients come in").advise(
            "--socket PATH makes a socket; a service of systemd's gets one by a socket unit",
        )
    })
}

/// Shows to people what is served.
fn show(report: &ServeReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    for export in &report.exports {
        let how = if export.writable { ", writable" } else { "" };
        out.line(format!("{}: {}{how}", export.name, text::bytes(export.virtual_size)))?;
        out.line(format!("  {}", export.uri))?;
    }
    if report.on_demand {
        out.line("every point of the repository")?;
        out.line(format!("  {}", report.uri))?;
    }
    Ok(())
}
