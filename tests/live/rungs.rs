//! Every way to count gives the same bytes: the process's own tally, and each way to attach user probes that this kernel has.

use crate::common::{Run, any_python, near_blocks, root, script};

/// All roles with a return: `bytearray` resizes by realloc; a thread, a fork and an exec on the way.
const PROGRAM: &str = "
import os, sys, threading

def take():
    kept = bytearray(3_000_000)  # here
    kept.extend(bytes(2_000_000))  # resized
    return kept

def main():
    results = []
    worker = threading.Thread(target=lambda: results.append(take()))
    worker.start()
    worker.join()
    child = os.fork()
    if child == 0:
        take()
        os._exit(0)
    os.waitpid(child, 0)
    if 'again' not in sys.argv:
        os.execv(sys.executable, [sys.executable, __file__, 'again'])
main()
";

#[test]
fn root_every_way_gives_the_same_bytes() {
    if !root() {
        return;
    }
    for marked in [false, true] {
        let text = if marked { PROGRAM.replace("def take", "@profile\ndef take") } else { PROGRAM.to_owned() };
        let program = script("rungs.py", &text);
        for (rung, words) in [
            ("tally", &[][..]),
            ("best", &["--no-preload"]),
            ("session", &["--probes", "session"]),
            ("preempted", &["--probes", "preempted"]),
            ("multi", &["--probes", "multi"]),
            ("single", &["--probes", "single"]),
        ] {
            let run = Run::json().words(words).word(any_python().path).word(&program.path);
            let report = run.run().expect(0).quiet().report();
            let processes = report.processes();
            assert_eq!(processes.len(), 4, "{rung}: {report}");
            for process in processes {
                near_blocks(process.line("take", program.line("# here")).increment(), 3_000_001);
                let resized = process.line("take", program.line("# resized")).increment();
                assert!((2_000_000..3_000_000).contains(&resized), "{rung}: {resized}");
            }
        }
    }
}
