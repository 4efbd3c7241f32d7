/**
 * What a key can be: its kinds, how a TOML value or an environment variable's text becomes one, and how a value
 * prints. The builders tie a key's default to the TypeScript type of its field. Knows no particular key, no file.
 */
import { Secret } from '../base/secret.ts';

/** PgDog writes "no limit" as the largest 64-bit integer. */
export const NO_LIMIT = 9223372036854775807n;

export type Kind =
  | { readonly name: 'string' | 'path' | 'url' | 'secret' | 'secrets' | 'boolean' | 'pattern' }
  | {
      readonly name: 'integer';
      readonly min: number;
      readonly max: number;
      /** How "no limit" is written: as the largest 64-bit integer, as 0, or not at all. */
      readonly noLimit: 'largest' | 'zero' | null;
    }
  | {
      readonly name: 'choice';
      readonly choices: readonly string[];
      /** Values that PgDog knows and pgturnstile does not. */
      readonly foreign: readonly string[];
    }
  | {
      readonly name: 'strings';
      readonly choices: readonly string[] | null;
      readonly isEmptyAllowed: boolean;
      /** A bare string may stand for a list of one. */
      readonly isBareAllowed: boolean;
    };

/** One key of one section. `T` is the type of the field of `Config` that it fills. */
export interface KeySpec<T> {
  readonly key: string;
  readonly kind: Kind;
  readonly unit: 'ms' | 's' | null;
  readonly isRequired: boolean;
  /** Null for a key that has no value of its own accord. */
  readonly defaultValue: T;
  /** The default, or for a key without one an example, as it is written in TOML. */
  readonly literal: string;
  readonly meaning: string;
  /** `warn`: parsed and checked, but without effect; the sentence says why. */
  readonly status: 'works' | 'warn';
  readonly warning: string | null;
  /** Another name of PgDog's for the same key. */
  readonly alias: string | null;
  /** Environment variables beside `PGDOG_<KEY>`; used in `[general]` only. */
  readonly extraEnv: readonly string[];
}

/** All keys of a section, one per field of its part of `Config`. */
export type Section<T> = { readonly [F in keyof T]-?: KeySpec<T[F]> };

export interface KeyOptions {
  unit?: 'ms' | 's';
  alias?: string;
  warning?: string;
  extraEnv?: string[];
}

function build<T>(
  key: string,
  kind: Kind,
  value: { defaultValue: T; literal: string; isRequired?: boolean },
  meaning: string,
  options: KeyOptions = {},
): KeySpec<T> {
  return {
    key,
    kind,
    unit: options.unit ?? null,
    isRequired: value.isRequired ?? false,
    defaultValue: value.defaultValue,
    literal: value.literal,
    meaning,
    status: options.warning === undefined ? 'works' : 'warn',
    warning: options.warning ?? null,
    alias: options.alias ?? null,
    extraEnv: options.extraEnv ?? [],
  };
}

type Range = { min?: number; max?: number; noLimit?: 'largest' | 'zero' };

function integerKind(range: Range): Kind {
  const { min = 0, max = Number.MAX_SAFE_INTEGER, noLimit = null } = range;
  return { name: 'integer', min, max, noLimit };
}

export function integer(
  key: string,
  defaultValue: number,
  range: Range,
  meaning: string,
  options?: KeyOptions,
): KeySpec<number> {
  const kind = integerKind(range);
  return build(key, kind, { defaultValue, literal: formatValue(kind, defaultValue) }, meaning, options);
}

/** A duration in milliseconds with a least value of 1 unless the range says otherwise. */
export function milliseconds(
  key: string,
  defaultValue: number,
  range: Range,
  meaning: string,
  options?: KeyOptions,
): KeySpec<number> {
  return integer(key, defaultValue, { min: 1, ...range }, meaning, { unit: 'ms', ...options });
}

export function optionalInteger(
  key: string,
  example: number,
  range: Range,
  meaning: string,
  options?: KeyOptions,
): KeySpec<number | null> {
  return build(
    key,
    integerKind(range),
    { defaultValue: null, literal: `${example}` },
    meaning,
    options,
  ) as KeySpec<number | null>;
}

export function boolean(key: string, defaultValue: boolean, meaning: string): KeySpec<boolean> {
  return build(key, { name: 'boolean' }, { defaultValue, literal: `${defaultValue}` }, meaning);
}

export function optionalBoolean(key: string, example: boolean, meaning: string): KeySpec<boolean | null> {
  return build<boolean | null>(
    key,
    { name: 'boolean' },
    { defaultValue: null, literal: `${example}` },
    meaning,
  );
}

/** A non-empty string. */
export function string(key: string, defaultValue: string, meaning: string): KeySpec<string> {
  return build(key, { name: 'string' }, { defaultValue, literal: JSON.stringify(defaultValue) }, meaning);
}

export function requiredString(key: string, example: string, meaning: string): KeySpec<string> {
  const value = { defaultValue: '', literal: JSON.stringify(example), isRequired: true };
  return build(key, { name: 'string' }, value, meaning);
}

/** A non-empty string or nothing; a path is resolved against the file's directory, a URL has to parse. */
export function optionalString(
  name: 'string' | 'path' | 'url',
  key: string,
  example: string,
  meaning: string,
): KeySpec<string | null> {
  return build<string | null>(
    key,
    { name },
    { defaultValue: null, literal: JSON.stringify(example) },
    meaning,
  );
}

/** A secret; `<key>_file` names a file that holds it. */
export function secret(key: string, example: string, meaning: string): KeySpec<Secret | null> {
  return build<Secret | null>(
    key,
    { name: 'secret' },
    { defaultValue: null, literal: JSON.stringify(example) },
    meaning,
  );
}

/** Several secrets; `<key>_file` names a file with one on each line. */
export function secrets(key: string, meaning: string): KeySpec<Secret[]> {
  return build<Secret[]>(key, { name: 'secrets' }, { defaultValue: [], literal: '[]' }, meaning);
}

export function strings(
  key: string,
  defaultValue: string[],
  meaning: string,
  limits: { choices?: readonly string[]; isEmptyAllowed?: boolean; isBareAllowed?: boolean } = {},
): KeySpec<string[]> {
  const { choices = null, isEmptyAllowed = true, isBareAllowed = false } = limits;
  const kind: Kind = { name: 'strings', choices, isEmptyAllowed, isBareAllowed };
  return build(key, kind, { defaultValue, literal: formatValue(kind, defaultValue) }, meaning);
}

export function choice<T extends string>(
  key: string,
  choices: readonly T[],
  defaultValue: T,
  meaning: string,
  options: KeyOptions & { foreign?: string[] } = {},
): KeySpec<T> {
  const kind: Kind = { name: 'choice', choices, foreign: options.foreign ?? [] };
  return build(key, kind, { defaultValue, literal: JSON.stringify(defaultValue) }, meaning, options);
}

export function optionalChoice<T extends string>(
  key: string,
  choices: readonly T[],
  example: T,
  meaning: string,
  foreign: string[] = [],
): KeySpec<T | null> {
  const kind: Kind = { name: 'choice', choices, foreign };
  return build<T | null>(key, kind, { defaultValue: null, literal: JSON.stringify(example) }, meaning);
}

/** A regular expression that a whole name has to match. */
export function pattern(key: string, source: string, meaning: string): KeySpec<RegExp> {
  const value = { defaultValue: compilePattern(source), literal: `'${source}'` };
  return build(key, { name: 'pattern' }, value, meaning);
}

/**
 * Anchored at both ends, so that a pattern without `^` and `$` is no wider than it looks. No `i` flag: with `u` it
 * would let U+017F pass for an s. Throws a SyntaxError for a bad pattern.
 */
function compilePattern(source: string): RegExp {
  new RegExp(source, 'u');
  return new RegExp(`^(?:${source})$`, 'u');
}

/** True when the key's value must never be shown. */
export function isSecret(kind: Kind): boolean {
  return kind.name === 'secret' || kind.name === 'secrets';
}

export type ReadResult = { readonly value: unknown } | { readonly problem: string };

/** A TOML value as a value of the kind, or the sentence that says what it should have been. */
export function readValue(kind: Kind, raw: unknown): ReadResult {
  switch (kind.name) {
    case 'boolean':
      return typeof raw === 'boolean' ? { value: raw } : { problem: 'must be true or false' };
    case 'integer':
      return readInteger(kind, raw);
    case 'string':
    case 'path':
      return readString(raw);
    case 'url':
      return readUrl(raw);
    case 'secret': {
      const result = readString(raw);
      return 'value' in result ? { value: new Secret(result.value) } : result;
    }
    case 'secrets': {
      const result = readStrings(raw);
      return 'value' in result ? { value: result.value.map((text) => new Secret(text)) } : result;
    }
    case 'choice':
      return readChoice(kind, raw);
    case 'strings': {
      const result = readStrings(kind.isBareAllowed && typeof raw === 'string' ? [raw] : raw);
      if ('problem' in result) return result;
      if (result.value.length === 0 && !kind.isEmptyAllowed) return { problem: 'must not be empty' };
      const stranger = result.value.find((text) => kind.choices !== null && !kind.choices.includes(text));
      if (stranger === undefined) return result;
      return { problem: `${JSON.stringify(stranger)} is not one of ${kind.choices!.join(', ')}` };
    }
    case 'pattern': {
      const result = readString(raw);
      if ('problem' in result) return result;
      try {
        return { value: compilePattern(result.value) };
      } catch {
        return { problem: 'is not a valid regular expression' };
      }
    }
    default:
      kind satisfies never;
      return { problem: 'has no kind' };
  }
}

function readInteger(kind: Kind & { name: 'integer' }, raw: unknown): ReadResult {
  const unit = `must be a whole number${kind.noLimit === 'zero' ? ' (0 is no limit)' : ''}`;
  if (typeof raw === 'bigint') {
    if (kind.noLimit === 'largest' && raw > 0n) return { value: Number.POSITIVE_INFINITY };
    return { problem: raw > 0n ? `must be at most ${kind.max}` : `must be at least ${kind.min}` };
  }
  if (typeof raw !== 'number' || !Number.isInteger(raw)) return { problem: unit };
  if (kind.noLimit === 'zero' && raw === 0) return { value: Number.POSITIVE_INFINITY };
  if (raw < kind.min) return { problem: `must be at least ${kind.min}` };
  if (raw > kind.max) return { problem: `must be at most ${kind.max}` };
  return { value: raw };
}

function readString(raw: unknown): { value: string } | { problem: string } {
  if (typeof raw !== 'string') return { problem: 'must be a string' };
  if (raw === '') return { problem: 'must not be empty; leave the key out instead' };
  // PostgreSQL's protocol ends every name and password with a zero byte.
  return raw.includes('\0') ? { problem: 'must not hold a zero byte' } : { value: raw };
}

function readStrings(raw: unknown): { value: string[] } | { problem: string } {
  if (!Array.isArray(raw)) return { problem: 'must be a list of strings' };
  const values: string[] = [];
  for (const [index, item] of raw.entries()) {
    const result = readString(item);
    if ('problem' in result) return { problem: `item ${index + 1} ${result.problem.split(';')[0]}` };
    values.push(result.value);
  }
  return { value: values };
}

function readUrl(raw: unknown): ReadResult {
  const result = readString(raw);
  if ('problem' in result) return result;
  const url = URL.canParse(result.value) ? new URL(result.value) : null;
  if (url === null || (url.protocol !== 'https:' && url.protocol !== 'http:')) {
    return { problem: 'must be an absolute https:// or http:// URL' };
  }
  if (url.username !== '' || url.password !== '') return { problem: 'must not hold a user or password' };
  return { value: result.value };
}

function readChoice(kind: Kind & { name: 'choice' }, raw: unknown): ReadResult {
  if (typeof raw === 'string' && kind.choices.includes(raw)) return { value: raw };
  const choices = kind.choices.join(', ');
  if (typeof raw !== 'string') return { problem: `must be one of ${choices}` };
  const shown = JSON.stringify(raw.slice(0, 64));
  if (kind.foreign.includes(raw)) {
    return { problem: `PgDog's ${shown} is not supported here; it must be one of ${choices}` };
  }
  return { problem: `must be one of ${choices}, not ${shown}` };
}

/** The text of an environment variable as the TOML value it stands for; text that fits no better stays text. */
export function valueOfText(kind: Kind, text: string): unknown {
  switch (kind.name) {
    case 'boolean':
      if (/^(true|1|on|yes)$/i.test(text)) return true;
      return /^(false|0|off|no)$/i.test(text) ? false : text;
    case 'integer': {
      if (!/^-?\d{1,19}$/.test(text)) return text;
      const value = Number(text);
      return Number.isSafeInteger(value) ? value : BigInt(text);
    }
    case 'strings':
    case 'secrets':
      return text.split(',').map((item) => item.trim());
    default:
      return text;
  }
}

/** A value as TOML writes it; secrets as `****`, no value as the empty string. */
export function formatValue(kind: Kind, value: unknown): string {
  if (value === null || value === undefined) return '';
  if (value === Number.POSITIVE_INFINITY) {
    return kind.name === 'integer' && kind.noLimit === 'zero' ? '0' : `${NO_LIMIT}`;
  }
  if (isSecret(kind)) return '****';
  if (value instanceof RegExp) return `'${value.source.replace(/^\^\(\?:(.*)\)\$$/su, '$1')}'`;
  if (Array.isArray(value)) return `[${value.map((item) => JSON.stringify(item)).join(', ')}]`;
  return typeof value === 'string' ? JSON.stringify(value) : `${value}`;
}

/** The type as the reference names it: `integer (ms)`, `"a" or "b"`. */
export function describeType(spec: KeySpec<unknown>): string {
  switch (spec.kind.name) {
    case 'choice':
      return spec.kind.choices.map((value) => `"${value}"`).join(', ');
    case 'integer':
      return spec.unit === null ? 'integer' : `integer (${spec.unit})`;
    case 'strings':
      return spec.kind.isBareAllowed ? 'string or list of strings' : 'list of strings';
    case 'secrets':
      return 'list of secrets';
    case 'pattern':
      return 'regular expression';
    case 'url':
      return 'URL';
    default:
      return spec.kind.name;
  }
}
