/**
 * The text of a console request as words: comments and blanks out, quotes resolved, cut at semicolons. It is no
 * SQL parser and knows no command; the console's language is a few words per statement.
 */
import { PgError, SqlState } from '../protocol/pg-error.ts';

/** A `word` is as typed, `quoted` was in double quotes, `string` in single ones; `symbol` is any other character. */
export interface Token {
  readonly kind: 'word' | 'quoted' | 'string' | 'symbol';
  readonly text: string;
}

/**
 * The statements of a text, empty ones left out. A hyphen inside a word belongs to it, so that names of databases
 * seldom need quotes. Throws PgError 42601 for a quote or a comment without an end.
 */
export function splitStatements(text: string): Token[][] {
  const statements: Token[][] = [];
  let current: Token[] = [];
  let at = 0;
  while (at < text.length) {
    if (text.startsWith('/*', at)) {
      at = skipBlockComment(text, at);
      continue;
    }
    PIECE.lastIndex = at;
    const found = PIECE.exec(text);
    if (found === null) throw unterminated(text[at] === '"' ? 'quoted identifier' : 'quoted string');
    at = PIECE.lastIndex;
    const { word, quoted, string, symbol } = found.groups as Record<string, string | undefined>;
    if (word !== undefined) current.push({ kind: 'word', text: word });
    else if (quoted !== undefined) current.push({ kind: 'quoted', text: quoted.replaceAll('""', '"') });
    else if (string !== undefined) current.push({ kind: 'string', text: string.replaceAll("''", "'") });
    else if (symbol === ';') {
      if (current.length > 0) statements.push(current);
      current = [];
    } else if (symbol !== undefined) current.push({ kind: 'symbol', text: symbol });
  }
  if (current.length > 0) statements.push(current);
  return statements;
}

/** Comments nest, as in PostgreSQL (manual, section 4.1.5). */
function skipBlockComment(text: string, start: number): number {
  let depth = 0;
  let at = start;
  do {
    BLOCK_COMMENT_EDGE.lastIndex = at;
    const edge = BLOCK_COMMENT_EDGE.exec(text);
    if (edge === null) throw unterminated('comment');
    depth += edge[0] === '/*' ? 1 : -1;
    at = BLOCK_COMMENT_EDGE.lastIndex;
  } while (depth > 0);
  return at;
}

function unterminated(what: string): PgError {
  return new PgError({ code: SqlState.SyntaxError, message: `unterminated ${what}` });
}

/** Blanks, a line comment, or one token. Fails only on a quote that is never closed. */
const PIECE =
  /\s+|--[^\r\n]*|(?<word>[\p{L}\p{N}_][\p{L}\p{N}_$.]*(?:-[\p{L}\p{N}_$.]+)*)|"(?<quoted>(?:[^"]|"")*)"|'(?<string>(?:[^']|'')*)'|(?<symbol>[^"'])/uy;
const BLOCK_COMMENT_EDGE = /\/\*|\*\//g;
