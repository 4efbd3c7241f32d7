/**
 * `match` of a role rule: literal text around one group. Two different claims never give the same role by it, since
 * what is dropped is always the same text. Owns what such an expression may hold; knows no claim and no rule.
 */

/** What the group holds of a value that the expression fits as a whole, else null. */
export type RoleMatch = (value: string) => string | null;

/** Escapes that stand for the character itself; every other one is a class or an assertion, and so no literal. */
const ESCAPED_LITERAL = /^[^A-Za-z0-9]$/;
const META = '.*+?^$|[]{}()';

/**
 * Compiles the expression. Throws `RangeError` with a sentence for anything but literal text around exactly one
 * group, and for parts inside the group that could take unbounded time or make two values one.
 */
export function compileRoleMatch(source: string): RoleMatch {
  const opens = literalLength(source, 0);
  if (source[opens] !== '(') throw new RangeError(notLiteral(source, opens));
  const closes = groupEnd(source, opens);
  const rest = literalLength(source, closes + 1);
  if (rest < source.length) throw new RangeError(notLiteral(source, rest));
  let pattern: RegExp;
  try {
    pattern = new RegExp(`^${source}$`, 'su');
  } catch (error) {
    throw new RangeError(`is no regular expression: ${sentenceOf(error)}`);
  }
  return (value) => pattern.exec(value)?.[1] ?? null;
}

/** Index of the first character from `start` on that is not literal text. */
function literalLength(source: string, start: number): number {
  let index = start;
  while (index < source.length) {
    const character = source[index]!;
    if (character === '\\') {
      if (!ESCAPED_LITERAL.test(source[index + 1] ?? '')) return index;
      index += 2;
    } else if (META.includes(character)) return index;
    else index += 1;
  }
  return index;
}

/** Index of the parenthesis that closes the group at `opens`. */
function groupEnd(source: string, opens: number): number {
  if (source[opens + 1] === '?') throw new RangeError('needs a plain group: (...)');
  let depth = 0;
  let isClass = false;
  for (let index = opens; index < source.length; index++) {
    const character = source[index];
    if (character === '\\') {
      if (/[1-9k]/.test(source[index + 1] ?? '')) throw new RangeError('must not refer back to a group');
      index += 1;
    } else if (isClass) isClass = character !== ']';
    else if (character === '[') isClass = true;
    else if (character === '(') {
      depth += 1;
      if (index !== opens && source.slice(index, index + 3) !== '(?:') {
        throw new RangeError('must have exactly one group; inside it only (?:...) may stand');
      }
    } else if (character === ')') {
      depth -= 1;
      if (depth === 0) return index;
      // A repeated group can take time that doubles with every character.
      if (/[*+?{]/.test(source[index + 1] ?? '')) {
        throw new RangeError('must not repeat a group; repeat a character or a class instead');
      }
    }
  }
  throw new RangeError('has a group that is not closed');
}

function notLiteral(source: string, index: number): string {
  if (index >= source.length) return 'has no group: what remains of the claim is the text of one';
  if (source[index] === '(') return 'must have exactly one group';
  return `must be literal text outside of its one group; "${source.slice(index, index + 2)}" is not (put a backslash before a sign that is meant as itself)`;
}

function sentenceOf(error: unknown): string {
  return error instanceof Error
    ? error.message.replace(/^Invalid regular expression: /, '')
    : 'unknown error';
}
