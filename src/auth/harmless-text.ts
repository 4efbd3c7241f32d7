/**
 * Text that came from a stranger, made fit for a log line, a message or a terminal. It knows nothing of what
 * the text means.
 */

const SHOWN_CHARS_MAX = 64;

/**
 * `text` with every control, format, separator and lone-surrogate character written as `\u{…}`, and cut at
 * `charsMax` characters (default 64) with an ellipsis. No line break, escape sequence or direction mark survives.
 */
export function harmlessText(text: string, charsMax: number = SHOWN_CHARS_MAX): string {
  if (text.length <= charsMax && /^[ -~]*$/.test(text)) return text;
  const shown = text.length > charsMax ? `${text.slice(0, charsMax)}…` : text;
  return shown.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (character) => {
    return `\\u{${character.codePointAt(0)!.toString(16)}}`;
  });
}

/** True when `text` holds half of a surrogate pair: two such strings can share their UTF-8 bytes. */
export function hasLoneSurrogate(text: string): boolean {
  return /[\ud800-\udfff]/u.test(text);
}
