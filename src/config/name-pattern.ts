/**
 * Lists of names in which an entry that begins with a slash is a regular expression, as in pg_hba.conf: of
 * allowed_roles and of login rules. An expression must fit the whole name. Knows neither roles nor rules.
 */

/** True when the name is one of the list, or one of its expressions fits it. */
export type NameTest = (name: string) => boolean;

/**
 * Compiles a list; throws `RangeError` with a sentence for an entry that is no regular expression. A slash may close
 * the expression as well. An empty list fits nothing: what it means is the caller's.
 */
export function compileNames(entries: readonly string[]): NameTest {
  const names = new Set<string>();
  const patterns: RegExp[] = [];
  for (const entry of entries) {
    if (entry.startsWith('/')) patterns.push(compileName(entry));
    else names.add(entry);
  }
  return (name) => names.has(name) || patterns.some((pattern) => pattern.test(name));
}

function compileName(entry: string): RegExp {
  const source = entry.slice(1).replace(/(?<!\\)\/$/, '');
  if (source === '') throw new RangeError(`"${entry}" is an empty regular expression`);
  try {
    // By itself first: brackets that do not match would close those around it, and free it of its anchors.
    new RegExp(source, 'su');
    return new RegExp(`^(?:${source})$`, 'su');
  } catch (error) {
    const why =
      error instanceof Error ? error.message.replace(/^Invalid regular expression: /, '') : 'unknown error';
    throw new RangeError(`"${entry}" is no regular expression: ${why}`);
  }
}
