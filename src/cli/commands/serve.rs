//! `qdelta serve`: points as disks for others.

use qdelta::Result;
use qdelta::flows::report::ServeReport;
use qdelta::flows::serve::{ServeRequest, Server, Wanted};
use qdelta::vault::repository::Selector;

use crate::cli::serve_args::Serve;
use crate::cli::{Context, signals, status, text};

/// Serves until somebody asks to stop.
pub fn run(args: Serve, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let wanted = match args.domain {
        Some(domain) => Wanted::Guest(domain, args.at.unwrap_or(Selector::Latest)),
        None if args.disks.is_empty() => Wanted::Everything,
        None => Wanted::Disks(args.disks),
    };
    let cores = || std::thread::available_parallelism().map_or(2, usize::from);
    let threads = args.threads.unwrap_or_else(|| cores().clamp(2, 8));
    let cancel = signals::watch(&context.screen);
    let request = ServeRequest { wanted, socket: args.socket, threads };
    let server = Server::open(repository, &request)?;
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

/// Shows to people what is served.
fn show(report: &ServeReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    for export in &report.exports {
        out.line(format!("{}: {}", export.name, text::bytes(export.virtual_size)))?;
        out.line(format!("  {}", export.uri))?;
    }
    if report.on_demand {
        out.line("every point of the repository")?;
        out.line(format!("  {}", report.uri))?;
    }
    Ok(())
}
