/** What the doctor found, one finding a line with its fix below it. It holds no secret: names, versions and words only. */

export interface Finding {
  /** `wrong` makes the exit code 1; a `note` is for the reader to judge. */
  readonly level: 'fine' | 'note' | 'wrong';
  readonly text: string;
  readonly fix: string | null;
}

/** Findings in the order they were made. */
export class DoctorReport {
  readonly findings: Finding[] = [];

  fine(text: string): void {
    this.findings.push({ level: 'fine', text, fix: null });
  }

  note(text: string, fix: string | null = null): void {
    this.findings.push({ level: 'note', text, fix });
  }

  wrong(text: string, fix: string): void {
    this.findings.push({ level: 'wrong', text, fix });
  }

  get healthy(): boolean {
    return this.findings.every((finding) => finding.level !== 'wrong');
  }

  /** Control characters of a name or of a server's words never reach the terminal. */
  lines(): string[] {
    const lines: string[] = [];
    for (const { level, text, fix } of this.findings) {
      lines.push(`${level.padEnd(6)} ${printable(text)}`);
      if (fix !== null) lines.push(`       fix: ${printable(fix)}`);
    }
    const wrong = this.findings.filter((finding) => finding.level === 'wrong').length;
    lines.push(wrong === 0 ? 'nothing is wrong' : `${wrong} wrong`);
    return lines;
  }
}

/** At most this many names in one line. */
const NAMES_MAX = 10;

/** `a, b, c and 7 more`. */
export function listed(names: readonly string[]): string {
  const shown = names.slice(0, NAMES_MAX).map((name) => `"${name}"`);
  const more = names.length - shown.length;
  return more > 0 ? `${shown.join(', ')} and ${more} more` : shown.join(', ');
}

function printable(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}
