/**
 * How much work and stack a text would cost the parser, told beforehand by one pass over its tokens. The WASM
 * build of PostgreSQL's parser does not survive a stack overflow (its memory stays half-changed and a later call
 * may never return) and PostgreSQL's scanner takes quadratic time for runs of comment openers, so such texts must
 * not reach it. It knows no SQL beyond tokens.
 */
import { Lexer, TokenKind } from './lexer.ts';
import { flagsAt, WordFlag } from './words.ts';

/** Tokens in one text: about 1 µs of parser and tree walk each. */
export const PARSE_TOKENS_MAX = 30_000;
/** Tokens on the way from the outermost list to the innermost expression; the tree is never deeper. Overflows begin near 3,500. */
export const PARSE_DEPTH_MAX = 2_000;
/** Characters that the scanner may read again because of one run of operator characters; about 2 ns each. */
export const RESCANNED_CHARS_MAX = 2_000_000;

const OPERATORS: ReadonlySet<number> = new Set(Array.from('~!@#^&|`?+-*/%<>=', (char) => char.charCodeAt(0)));

/** The reason why the parser must not see the text, or null. The text's length is the caller's matter. */
export function tooCostly(text: string): 'large' | 'complex' | null {
  if (text.length > 1_000 && rescannedChars(text) > RESCANNED_CHARS_MAX) return 'complex';
  const lexer = new Lexer();
  lexer.reset(text);
  const own: number[] = [0];
  const kept: number[] = [0];
  let level = 0;
  let depth = 0;
  for (let tokens = 0; ; tokens++) {
    if (tokens > PARSE_TOKENS_MAX) return 'large';
    if (depth > PARSE_DEPTH_MAX) return 'complex';
    const kind = lexer.next();
    if (kind === TokenKind.End) return null;
    // The lexer cannot go on, the parser can: the rest counts by its length.
    if (kind === TokenKind.Doubtful)
      return tokens + text.length > PARSE_DEPTH_MAX * 2 ? costlyRest(text) : null;
    depth++;
    own[level]!++;
    if (lexer.sign === 0x28 || lexer.sign === 0x5b) {
      level++;
      own[level] = 0;
      kept[level] = 0;
    } else if ((lexer.sign === 0x29 || lexer.sign === 0x5d) && level > 0) {
      depth -= own[level]!;
      level--;
    } else if (lexer.sign === 0x2c) {
      depth -= own[level]! - kept[level]!;
      own[level] = kept[level]!;
    } else if (lexer.sign === 0x3b && level === 0) {
      depth = 0;
      own[0] = 0;
      kept[0] = 0;
    } else if (
      kind === TokenKind.Word &&
      (flagsAt(text, lexer.start, lexer.end) & WordFlag.SetOperation) !== 0
    ) {
      kept[level]! += 4;
      own[level]! += 4;
      depth += 4;
    }
  }
}

/** For texts with Unicode escapes or broken quoting: every word or sign between spaces counts, literals included. */
function costlyRest(text: string): 'large' | 'complex' | null {
  let tokens = 0;
  let depth = 0;
  let inWord = false;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    const word =
      code >= 128 ||
      code === 0x5f ||
      (code >= 0x30 && code <= 0x39) ||
      ((code | 0x20) >= 0x61 && (code | 0x20) <= 0x7a);
    if (code <= 0x20 || (word && inWord)) {
      inWord = word;
      continue;
    }
    inWord = word;
    tokens++;
    depth++;
    if (code === 0x3b) depth = 0;
    if (depth > PARSE_DEPTH_MAX) return 'complex';
  }
  return tokens > PARSE_TOKENS_MAX ? 'large' : null;
}

/** scan.l takes a run of operator characters whole, then gives most of it back at each comment opener and each sign. */
function rescannedChars(text: string): number {
  let worst = 0;
  let from = 0;
  let restarts = 0;
  for (let at = 0; at <= text.length; at++) {
    const code = at < text.length ? text.charCodeAt(at) : 0;
    if (OPERATORS.has(code)) {
      if (code === 0x2b || code === 0x2d || (code === 0x2a && text.charCodeAt(at - 1) === 0x2f)) restarts++;
      continue;
    }
    worst += (at - from) * restarts;
    from = at + 1;
    restarts = 0;
  }
  return worst;
}
