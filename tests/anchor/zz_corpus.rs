use qdelta::anchor::{ImageFile, prove};
use std::sync::Arc;
#[test]
fn zz_corpus() {
    let mut files: Vec<_> = std::fs::read_dir(std::env::var("CORPUS").unwrap()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let (mut n, mut ok) = (0, 0);
    for path in files {
        if !path.is_file() { continue }
        let file = std::fs::File::open(&path).unwrap();
        let image = ImageFile::over(Arc::new(qdelta::io::FileStore::new(file, &path)));
        let began = std::time::Instant::now();
        let proved = prove(&image);
        let took = began.elapsed();
        let out = std::process::Command::new("timeout").args(["20","qemu-img", "check", "-f", "qcow2", "-U", path.to_str().unwrap()]).output().unwrap();
        let rc = out.status.code();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        let low = text.lines().any(|l| l.starts_with("ERROR cluster") );
        n += 1; if proved.is_ok() { ok += 1 }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if took.as_millis() > 500 { println!("SLOW {name} {took:?}"); }
        match (&proved, rc) {
            (Err(e), Some(0 | 3)) => println!("REFUSED-SOUND {name} rc={rc:?} {}", e.chain()),
            (Ok(()), Some(2)) if low => println!("ACCEPTED-LOW {name} {}", text.lines().take(4).collect::<Vec<_>>().join(" | ")),
            (Ok(()), Some(2)) => println!("accepted-other {name} {}", text.lines().take(2).collect::<Vec<_>>().join(" | ")),
            (Ok(()), Some(1)|None) => println!("accepted-unreadable {name} {}", text.lines().take(2).collect::<Vec<_>>().join(" | ")),
            _ => {}
        }
    }
    println!("{ok} of {n} proved");
}
