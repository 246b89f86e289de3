//! Options of `ps`, as far as they say what is shown (pure). Which processes are selected is not asked: it is those of the
//! container, all of them.

use anyhow::{Context as _, anyhow, ensure};

use super::columns::Column;

/// `ps -ef`, which is what is shown without options.
pub(super) const FULL: &str = "UID,pid,ppid,c,stime,TTY,time,cmd";
/// `ps -e`.
const PLAIN: &str = "pid,TTY,time,cmd";
/// `ps -ej`.
const JOBS: &str = "pid,pgid,sid,TTY,time,cmd";
/// `ps ax`.
const BSD: &str = "pid,TTY,stat,bsdtime,command";
/// `ps aux`.
const BSD_USER: &str = "user,pid,%cpu,%mem,vsz,rss,TTY,stat,bsdstart,bsdtime,command";

/// Columns in one table: a bound on what is worth reading.
const COLUMNS_MAX: usize = 64;

/// The columns that `words` ask for.
pub(super) fn columns(words: &[String]) -> anyhow::Result<Vec<Column>> {
    let mut preset = if words.is_empty() { FULL } else { PLAIN };
    let mut asked = Vec::new();
    let mut has_headers = true;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let unknown = || {
            anyhow!(
                "ps {word}: the processes are a guest's, and of the options of ps there are -e, -A, -f, -j, -w, a, x, u, w, \
                 --no-headers, and -o with a list of columns"
            )
        };
        if let Some(long) = word.strip_prefix("--") {
            match long.split_once('=') {
                None if matches!(long, "no-headers" | "no-heading") => has_headers = false,
                None if long == "format" => list(words.next(), &mut asked)?,
                Some(("format", value)) => list(Some(value), &mut asked)?,
                _ => return Err(unknown()),
            }
            continue;
        }
        let is_bsd = !word.starts_with('-');
        let letters = word.trim_start_matches('-');
        ensure!(!letters.is_empty(), unknown());
        // Known of old: ps takes it for BSD's, where there is no user x.
        let is_bsd = is_bsd || letters.starts_with("au");
        for (index, letter) in letters.char_indices() {
            match letter {
                'o' => {
                    let rest = &letters[index + 1..];
                    if rest.is_empty() {
                        list(words.next(), &mut asked)?;
                    } else {
                        list(Some(rest), &mut asked)?;
                    }
                    break;
                }
                'w' => {}
                'a' | 'x' if is_bsd => {
                    if preset == PLAIN {
                        preset = BSD;
                    }
                }
                'u' if is_bsd => preset = BSD_USER,
                'e' | 'A' if !is_bsd => {}
                'f' if !is_bsd => preset = FULL,
                'j' if !is_bsd => preset = JOBS,
                _ => return Err(unknown()),
            }
        }
    }
    if asked.is_empty() {
        list(Some(preset), &mut asked)?;
    }
    if !has_headers {
        asked = asked.into_iter().map(|column| column.under("")).collect();
    }
    Ok(asked)
}

/// Adds the columns of a list; what is behind `=` is the last one's header, commas and all.
fn list(words: Option<impl AsRef<str>>, asked: &mut Vec<Column>) -> anyhow::Result<()> {
    let words = words.context("ps -o: a list of columns is missing")?;
    let (names, header) = match words.as_ref().split_once('=') {
        Some((names, header)) => (names, Some(header)),
        None => (words.as_ref(), None),
    };
    for name in names.split([',', ' ']).filter(|name| !name.is_empty()) {
        ensure!(asked.len() < COLUMNS_MAX, "ps -o: too many columns");
        let column = Column::named(name);
        asked.push(column.ok_or_else(|| anyhow!("ps -o {name}: there is no such column"))?);
    }
    if let Some(header) = header {
        let last = asked.pop().context("ps -o: a header without a column")?;
        asked.push(last.under(header));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::columns::lines;
    use super::*;

    fn headers(words: &[&str]) -> Result<String, String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let columns = columns(&words).map_err(|error| error.to_string())?;
        let text: String = lines(&columns, &[], 0).collect();
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn options_choose_columns_as_those_of_ps() {
        let full = "UID PID PPID C STIME TTY TIME CMD";
        let user = "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND";
        for (words, expected) in [
            (&[][..], full),
            (&["-ef"], full),
            (&["-A", "-f"], full),
            (&["-e"], "PID TTY TIME CMD"),
            (&["-ej"], "PID PGID SID TTY TIME CMD"),
            (&["ax"], "PID TTY STAT TIME COMMAND"),
            (&["aux"], user),
            (&["-aux"], user),
            (&["auxww"], user),
            (&["-eo", "pid,comm"], "PID COMMAND"),
            (&["-o", "pid", "-o", "ppid=UP"], "PID UP"),
            (&["-opid,args"], "PID COMMAND"),
            (&["axo", "pid rss"], "PID RSS"),
            (&["--format=stat,nlwp"], "STAT NLWP"),
            (&["-o", "pid=", "-o", "comm="], ""),
            (&["-ef", "--no-headers"], ""),
        ] {
            assert_eq!(headers(words).as_deref(), Ok(expected), "{words:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (words, part) in [
            (&["-Z"][..], "ps -Z: "),
            (&["-eL"], "ps -eL: "),
            (&["--forest"], "ps --forest: "),
            (&["-"], "ps -: "),
            (&["-o", "pid,wchan"], "ps -o wchan: "),
            (&["-o"], "missing"),
            (&["-o", "=x"], "header"),
        ] {
            let error = headers(words).unwrap_err();
            assert!(error.contains(part), "{words:?}: {error}");
        }
        let many = "pid,".repeat(COLUMNS_MAX + 1);
        assert!(headers(&["-o", &many]).unwrap_err().contains("too many"));
    }
}
