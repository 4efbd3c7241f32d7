/**
 * On which line of a TOML text each key stands, since the parser keeps no positions. A scanner over text that the
 * parser has already accepted: tables, arrays of tables, dotted and quoted keys, inline tables, arrays, every kind
 * of string. It reads no values and judges nothing; text it cannot follow is skipped, never looped over.
 */

/** A step is a key, or the index in an array of tables or an array: `['databases', 0, 'host']`. */
export type TomlPath = readonly (string | number)[];

export interface TomlPositions {
  /** The 1-based line of the key or table header; undefined when the text has no such path. */
  lineOf(path: TomlPath): number | undefined;
}

/** Scans the whole text once. */
export function scanTomlPositions(text: string): TomlPositions {
  const lines = new Scanner(text).scan();
  return { lineOf: (path) => lines.get(JSON.stringify(path)) };
}

/** Deeper nesting is skipped without being recorded. */
const DEPTH_MAX = 100;

const SIMPLE_ESCAPES: Record<string, string> = {
  b: '\b',
  t: '\t',
  n: '\n',
  f: '\f',
  r: '\r',
  e: '\u001b',
  '"': '"',
  '\\': '\\',
};

class Scanner {
  readonly #text: string;
  readonly #lines = new Map<string, number>();
  /** Index of the newest element of each array of tables, by path. */
  readonly #tableIndex = new Map<string, number>();
  #at = 0;
  /** The line of `#counted`; counting goes forward only, so the whole scan stays linear. */
  #line = 1;
  #counted = 0;

  constructor(text: string) {
    this.#text = text;
  }

  scan(): Map<string, number> {
    let table: (string | number)[] = [];
    for (;;) {
      this.#skipBlank();
      const start = this.#at;
      const char = this.#text[start];
      if (char === undefined) return this.#lines;
      if (char === '[') table = this.#header();
      else this.#pair(table, 0);
      if (this.#at === start) this.#at++;
    }
  }

  #header(): (string | number)[] {
    const line = this.#lineHere();
    this.#at++;
    const isArray = this.#text[this.#at] === '[';
    if (isArray) this.#at++;
    const keys = this.#dottedKey();
    this.#toLineEnd();
    const path = this.#resolve(keys.slice(0, -1), line);
    path.push(keys.at(-1) ?? '');
    if (isArray) {
      const identity = JSON.stringify(path);
      const index = (this.#tableIndex.get(identity) ?? -1) + 1;
      this.#tableIndex.set(identity, index);
      this.#record(path, line);
      path.push(index);
    } else {
      const index = this.#tableIndex.get(JSON.stringify(path));
      if (index !== undefined) path.push(index);
    }
    this.#record(path, line);
    return path;
  }

  /** `[[a]]` then `[a.b]` means the b of the newest a; a table that only a longer header names begins there. */
  #resolve(keys: readonly string[], line: number): (string | number)[] {
    const path: (string | number)[] = [];
    for (const key of keys) {
      path.push(key);
      this.#record(path, line);
      const index = this.#tableIndex.get(JSON.stringify(path));
      if (index !== undefined) path.push(index);
    }
    return path;
  }

  #pair(base: TomlPath, depth: number): void {
    const line = this.#lineHere();
    const keys = this.#dottedKey();
    if (keys.length === 0 || this.#text[this.#at] !== '=') {
      if (depth === 0) this.#toLineEnd();
      return;
    }
    const path = [...base];
    for (const key of keys) {
      path.push(key);
      this.#record(path, line);
    }
    this.#at++;
    this.#value(path, depth);
  }

  #value(path: TomlPath, depth: number): void {
    this.#skipSpaces();
    const char = this.#text[this.#at];
    if (char === '"' || char === "'") this.#string();
    else if ((char === '[' || char === '{') && depth < DEPTH_MAX) {
      this.#at++;
      if (char === '[') this.#array(path, depth + 1);
      else this.#inlineTable(path, depth + 1);
    } else {
      while (this.#at < this.#text.length && !/[,\]}#\n]/.test(this.#text[this.#at]!)) this.#at++;
    }
  }

  #array(path: TomlPath, depth: number): void {
    for (let index = 0; ; ) {
      this.#skipBlank();
      const start = this.#at;
      const char = this.#text[start];
      if (char === undefined) return;
      if (char === ',' || char === ']') {
        this.#at++;
        if (char === ']') return;
        continue;
      }
      const element = [...path, index++];
      this.#record(element, this.#lineHere());
      this.#value(element, depth);
      if (this.#at === start) this.#at++;
    }
  }

  #inlineTable(path: TomlPath, depth: number): void {
    for (;;) {
      this.#skipBlank();
      const start = this.#at;
      const char = this.#text[start];
      if (char === undefined) return;
      if (char === ',' || char === '}') {
        this.#at++;
        if (char === '}') return;
        continue;
      }
      this.#pair(path, depth);
      if (this.#at === start) this.#at++;
    }
  }

  /** Leaves the scanner on what follows the key and its spaces. */
  #dottedKey(): string[] {
    const keys: string[] = [];
    for (;;) {
      this.#skipSpaces();
      const char = this.#text[this.#at];
      if (char === '"' || char === "'") keys.push(this.#string());
      else {
        const start = this.#at;
        while (this.#at < this.#text.length && /[\w-]/.test(this.#text[this.#at]!)) this.#at++;
        if (this.#at === start) return keys;
        keys.push(this.#text.slice(start, this.#at));
      }
      this.#skipSpaces();
      if (this.#text[this.#at] !== '.') return keys;
      this.#at++;
    }
  }

  /** Any of the four kinds of string; returns its value as far as a key can need it. */
  #string(): string {
    const quote = this.#text[this.#at]!;
    const isMultiline = this.#text.startsWith(quote.repeat(3), this.#at);
    this.#at += isMultiline ? 3 : 1;
    let value = '';
    for (;;) {
      const char = this.#text[this.#at];
      if (char === undefined || (char === '\n' && !isMultiline)) return value;
      if (char === '\\' && quote === '"') {
        value += this.#escape();
      } else if (char !== quote) {
        value += char;
        this.#at++;
      } else if (!isMultiline) {
        this.#at++;
        return value;
      } else if (this.#text.startsWith(quote.repeat(3), this.#at)) {
        this.#at += 3;
        // Up to two quotes may stand directly before the closing three, and belong to the value.
        while (this.#text[this.#at] === quote) this.#at++;
        return value;
      } else {
        this.#at++;
      }
    }
  }

  #escape(): string {
    const letter = this.#text[this.#at + 1] ?? '';
    const width = letter === 'x' ? 2 : letter === 'u' ? 4 : letter === 'U' ? 8 : 0;
    const digits = this.#text.slice(this.#at + 2, this.#at + 2 + width);
    this.#at += 2;
    if (width === 0) return SIMPLE_ESCAPES[letter] ?? '';
    const code = /^[0-9a-fA-F]+$/.test(digits) ? Number.parseInt(digits, 16) : 0;
    if (digits.length < width || code > 0x10ffff) return '';
    this.#at += width;
    return String.fromCodePoint(code);
  }

  #skipSpaces(): void {
    while (this.#text[this.#at] === ' ' || this.#text[this.#at] === '\t') this.#at++;
  }

  /** Spaces, line ends and comments. */
  #skipBlank(): void {
    for (;;) {
      const char = this.#text[this.#at];
      if (char === '#') this.#toLineEnd();
      else if (char === ' ' || char === '\t' || char === '\n' || char === '\r') this.#at++;
      else return;
    }
  }

  #toLineEnd(): void {
    const end = this.#text.indexOf('\n', this.#at);
    this.#at = end < 0 ? this.#text.length : end;
  }

  #lineHere(): number {
    for (; this.#counted < this.#at; this.#counted++) {
      if (this.#text.charCodeAt(this.#counted) === 10) this.#line++;
    }
    return this.#line;
  }

  /** The first place wins: a table that is opened twice by dotted keys is where it began. */
  #record(path: TomlPath, line: number): void {
    const identity = JSON.stringify(path);
    if (!this.#lines.has(identity)) this.#lines.set(identity, line);
  }
}
