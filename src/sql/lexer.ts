/**
 * Cuts SQL text into tokens by the rules of PostgreSQL's scanner (src/backend/parser/scan.l), with
 * standard_conforming_strings on. It owns where literals, comments and quoted names begin and end, and knows
 * nothing of what words mean. Where the rules depend on more than the text at hand (Unicode escapes, E'…'
 * continued on the next line) or the text is broken, the token is `Doubtful` and the caller must ask the parser.
 */

/** What a token is. `Sign` is a single character: punctuation or one character of an operator. */
export const TokenKind = {
  End: 0,
  Word: 1,
  QuotedName: 2,
  Literal: 3,
  Number: 4,
  Parameter: 5,
  Sign: 6,
  Doubtful: 7,
} as const;
export type TokenKind = (typeof TokenKind)[keyof typeof TokenKind];

const SPACE = 1;
const NAME_START = 2;
const NAME_PART = 4;
const DIGIT = 8;

const CLASS: Uint8Array = buildClasses();

function buildClasses(): Uint8Array {
  const classes = new Uint8Array(128);
  for (const char of ' \t\n\r\f\v') classes[char.charCodeAt(0)] = SPACE;
  for (let code = 0x30; code <= 0x39; code++) classes[code] = NAME_PART | DIGIT;
  for (let code = 0x61; code <= 0x7a; code++) {
    classes[code] = NAME_START | NAME_PART;
    classes[code - 0x20] = NAME_START | NAME_PART;
  }
  classes[0x5f] = NAME_START | NAME_PART;
  classes[0x24] = NAME_PART;
  return classes;
}

function isNamePart(code: number): boolean {
  return code >= 128 || (CLASS[code]! & NAME_PART) !== 0;
}

/** One reusable lexer: `reset(text)`, then `next()` until `End` or `Doubtful`. It allocates nothing but for dollar quotes. */
export class Lexer {
  /** First character of the token; for a quoted name the one behind the quote. */
  start = 0;
  /** One past the token's last character; for a quoted name the closing quote. */
  end = 0;
  /** The character code of a `Sign`, 0 for other tokens. */
  sign = 0;
  #text = '';
  #at = 0;
  #afterEscapeString = false;

  reset(text: string): void {
    this.#text = text;
    this.#at = 0;
    this.#afterEscapeString = false;
  }

  /** The next token; whitespace and comments are passed over. */
  next(): TokenKind {
    const text = this.#text;
    const length = text.length;
    this.sign = 0;
    for (;;) {
      if (this.#at >= length) return TokenKind.End;
      const start = this.#at;
      const code = text.charCodeAt(start);
      const kind = code < 128 ? CLASS[code]! : NAME_START;
      if ((kind & NAME_START) !== 0) return this.#word(start);
      if (kind === SPACE) {
        this.#at++;
        continue;
      }
      if (code === 0x2d && text.charCodeAt(start + 1) === 0x2d) {
        this.#lineComment(start + 2);
        continue;
      }
      if (code === 0x2f && text.charCodeAt(start + 1) === 0x2a) {
        if (!this.#blockComment(start + 2)) return TokenKind.Doubtful;
        continue;
      }
      return this.#other(start, code, kind);
    }
  }

  #word(start: number): TokenKind {
    const text = this.#text;
    const length = text.length;
    let at = start + 1;
    while (at < length && isNamePart(text.charCodeAt(at))) at++;
    if (at < length && at - start === 1) {
      const first = text.charCodeAt(start) | 0x20;
      const following = text.charCodeAt(at);
      if (first === 0x65 && following === 0x27) return this.#escapeString(start, at + 1);
      if (first === 0x75 && following === 0x26) {
        const quote = text.charCodeAt(at + 1);
        if (quote === 0x27 || quote === 0x22) return TokenKind.Doubtful;
      }
    }
    this.#afterEscapeString = false;
    this.start = start;
    this.end = at;
    this.#at = at;
    return TokenKind.Word;
  }

  #other(start: number, code: number, kind: number): TokenKind {
    const afterEscapeString = this.#afterEscapeString;
    this.#afterEscapeString = false;
    this.start = start;
    if ((kind & DIGIT) !== 0) return this.#digits(start, TokenKind.Number);
    if (code === 0x27)
      return afterEscapeString ? TokenKind.Doubtful : this.#quoted(start, 0x27, TokenKind.Literal);
    if (code === 0x22) return this.#quoted(start, 0x22, TokenKind.QuotedName);
    if (code === 0x24) {
      const following = this.#text.charCodeAt(start + 1);
      if (following >= 0x30 && following <= 0x39) return this.#digits(start + 1, TokenKind.Parameter);
      return this.#dollarQuoted(start);
    }
    if (code === 0) return TokenKind.Doubtful;
    this.#at = start + 1;
    this.end = start + 1;
    this.sign = code;
    return TokenKind.Sign;
  }

  /** Letters behind digits are left for the next token: servers before 15 read `1a` as two. */
  #digits(from: number, kind: TokenKind): TokenKind {
    const text = this.#text;
    let at = from + 1;
    while (at < text.length) {
      const code = text.charCodeAt(at);
      if (code >= 128 || (CLASS[code]! & DIGIT) === 0) break;
      at++;
    }
    this.end = at;
    this.#at = at;
    return kind;
  }

  /** A doubled quote reads as close and open, which ends at the same place. */
  #quoted(start: number, quote: number, kind: TokenKind): TokenKind {
    const mark = quote === 0x27 ? "'" : '"';
    let close = this.#text.indexOf(mark, start + 1);
    while (close >= 0 && this.#text.charCodeAt(close + 1) === quote)
      close = this.#text.indexOf(mark, close + 2);
    if (close < 0) return TokenKind.Doubtful;
    this.start = start + 1;
    this.end = close;
    this.#at = close + 1;
    return kind;
  }

  /** E'…': the backslash takes the next character with it, and '' stays inside. */
  #escapeString(start: number, from: number): TokenKind {
    const text = this.#text;
    for (let at = from; at < text.length; at++) {
      const code = text.charCodeAt(at);
      if (code === 0x5c) at++;
      else if (code === 0x27) {
        if (text.charCodeAt(at + 1) === 0x27) {
          at++;
          continue;
        }
        this.start = start;
        this.end = at + 1;
        this.#at = at + 1;
        this.#afterEscapeString = true;
        return TokenKind.Literal;
      }
    }
    return TokenKind.Doubtful;
  }

  #dollarQuoted(start: number): TokenKind {
    const text = this.#text;
    let at = start + 1;
    while (at < text.length && text.charCodeAt(at) !== 0x24 && isNamePart(text.charCodeAt(at))) at++;
    if (at >= text.length || text.charCodeAt(at) !== 0x24) return TokenKind.Doubtful;
    const tag = text.slice(start, at + 1);
    const close = text.indexOf(tag, at + 1);
    if (close < 0) return TokenKind.Doubtful;
    this.end = close + tag.length;
    this.#at = this.end;
    return TokenKind.Literal;
  }

  #lineComment(from: number): void {
    const text = this.#text;
    let at = from;
    while (at < text.length) {
      const code = text.charCodeAt(at);
      if (code === 0x0a || code === 0x0d) break;
      at++;
    }
    this.#at = at;
  }

  /** Comments nest. Returns false when the text ends inside. */
  #blockComment(from: number): boolean {
    const text = this.#text;
    let depth = 1;
    let at = from;
    while (at < text.length) {
      const code = text.charCodeAt(at);
      if (code === 0x2a && text.charCodeAt(at + 1) === 0x2f) {
        at += 2;
        depth--;
        if (depth === 0) {
          this.#at = at;
          return true;
        }
      } else if (code === 0x2f && text.charCodeAt(at + 1) === 0x2a) {
        at += 2;
        depth++;
      } else at++;
    }
    return false;
  }
}
