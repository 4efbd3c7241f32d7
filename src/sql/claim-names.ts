/**
 * The names of the settings that carry what was verified of a token, and how a text that the parser cannot see into
 * would change one. It knows names and patterns, not where the values come from.
 */
import { settingName } from './settings.ts';
import { BEGINNING, GAP } from './tripwires.ts';

/** All settings below these are ours, whatever the configuration names. */
const PREFIXES: readonly string[] = ['request.jwt', 'turnstile'];

/** Immutable. `names` beside the prefixes are those that the configuration maps claims to. */
export class ClaimNames {
  readonly #names: ReadonlySet<string>;
  readonly #change: RegExp;
  readonly #mention: RegExp;

  constructor(names: Iterable<string> = []) {
    const all = new Set<string>();
    for (const name of names) all.add(settingName(name));
    this.#names = all;
    const written = [...PREFIXES, ...all].map((name) => name.split('.').map(escaped));
    const dotted = written.map((parts) => parts.join(`"?${GAP}*\\.${GAP}*"?`)).join('|');
    const literal = written.map((parts) => parts.join('\\.')).join('|');
    this.#change = new RegExp(
      `${BEGINNING}(?:set|reset)${GAP}+(?:(?:session|local)${GAP}+)?"?(?:${dotted})\\b|` +
        `\\bset_config"?${GAP}*\\(${GAP}*(?:setting_name${GAP}*[:=]?[=>]${GAP}*)?'+(?:${literal})\\b`,
      'i',
    );
    const firsts = new Set(written.map((parts) => parts[0]));
    this.#mention = new RegExp(
      `${[...firsts].join('|')}|set_config|pg_settings|standard_conforming_strings|client_encoding|\\bnames\\b|u&|\\0`,
      'i',
    );
  }

  /** `name` as `settingName` gives it. */
  has(name: string): boolean {
    for (const prefix of PREFIXES) {
      if (name.startsWith(prefix) && (name.length === prefix.length || name[prefix.length] === '.'))
        return true;
    }
    return this.#names.has(name);
  }

  /** True when a body (of DO or of a function) plainly holds a statement that changes one of them. */
  changedIn(body: string): boolean {
    return this.#change.test(body);
  }

  /** True when a text that could not be parsed has a word without which none of them changes. */
  maybeIn(text: string): boolean {
    return this.#mention.test(text);
  }
}

/** What the client is told about such a setting: PostgreSQL's own words for one that a role may not set. */
export function claimMessage(name: string): string {
  return `permission denied to set parameter "${name}"`;
}

function escaped(text: string): string {
  return text.replace(/[^A-Za-z0-9_]/g, '\\$&');
}
