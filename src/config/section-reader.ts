/**
 * Reads one section of one file by its table of keys: values, defaults, environment, aliases, `*_file` twins,
 * relative paths, unknown keys. Remembers where each value came from, so that later checks can point at it.
 * Knows no particular key and no relation between keys.
 */
import path from 'node:path';
import { type ConfigFile, lineOf, readSecretFile, type TomlTable } from './config-file.ts';
import { type Environment, environmentValue } from './env.ts';
import { didYouMean, type FaultLog, type Place } from './faults.ts';
import { isSecret, type KeySpec, type ReadResult, readValue, type Section, valueOfText } from './key-spec.ts';
import { SCHEMA, type SchemaSection } from './schema.ts';
import { isPgDogDefault, UNSUPPORTED_KEYS, unsupportedMessage } from './unsupported.ts';

/** One table to read: `[general]`, or one row of `[[users]]`. */
export interface Row {
  readonly file: ConfigFile;
  readonly section: SchemaSection;
  /** `general`, `users[0]`. */
  readonly label: string;
  readonly path: readonly (string | number)[];
  readonly table: TomlTable;
}

/** A value as found, before it is understood. */
interface Found {
  readonly place: Place;
  readonly raw: unknown;
  readonly isFileName: boolean;
  readonly isText: boolean;
}

export class SectionReader {
  readonly #log: FaultLog;
  readonly #env: Environment;
  readonly #places = new Map<string, Place>();
  readonly #given = new Set<string>();
  readonly #faulty = new Set<string>();

  constructor(log: FaultLog, env: Environment) {
    this.#log = log;
    this.#env = env;
  }

  /** True when a file or the environment gives the key. */
  isGiven(label: string, key: string): boolean {
    return this.#given.has(`${label}.${key}`);
  }

  /** True when the key's value was refused and its default stands in. */
  isFaulty(label: string, key: string): boolean {
    return this.#faulty.has(`${label}.${key}`);
  }

  /** Where the key is given, else where its section begins. */
  placeOf(label: string, key: string): Place {
    return (
      this.#places.get(`${label}.${key}`) ?? {
        file: this.#places.get(label)?.file ?? '',
        line: this.#places.get(label)?.line ?? 0,
        key: `${label}.${key}`,
      }
    );
  }

  /** The values of a row, faults reported, the default in place of each missing or refused one. */
  read<T>(row: Row, specs: Section<T>): T {
    this.#places.set(row.label, { file: row.file.name, line: lineOf(row.file, row.path), key: row.label });
    const values: Record<string, unknown> = {};
    for (const [field, spec] of Object.entries<KeySpec<unknown>>(specs)) {
      values[field] = this.#readKey(row, spec);
    }
    // Sound because Section<T> has one spec of the field's own type per field of T.
    return values as T;
  }

  /** Reports every key of the row that the section does not have. */
  checkUnknown(row: Row): void {
    const known = keyNames(row.section);
    const foreign = UNSUPPORTED_KEYS[row.section.name] ?? {};
    for (const [key, value] of Object.entries(row.table)) {
      if (known.has(key) || isSection(`${row.section.name}.${key}`)) continue;
      const place = {
        file: row.file.name,
        line: lineOf(row.file, [...row.path, key]),
        key: `${row.label}.${key}`,
      };
      if (Object.hasOwn(foreign, key)) {
        if (isPgDogDefault(value, foreign[key])) continue;
        this.#log.warn(place, unsupportedMessage(`${row.section.name}.${key}`));
        continue;
      }
      const home = SCHEMA.find((section) => section !== row.section && keyNames(section).has(key));
      const inner = SCHEMA.map((section) => section.name.split('.')).filter(
        ([outer]) => outer === row.section.name,
      );
      const near = didYouMean(key, [
        ...known,
        ...inner.flatMap(([, name]) => name ?? []),
        ...Object.keys(foreign),
      ]);
      const hint =
        near === '' && home !== undefined ? `; it belongs in ${headerOf(home)} of ${home.file}` : near;
      this.#log.fault(place, `unknown key${hint}`);
    }
  }

  #readKey(row: Row, spec: KeySpec<unknown>): unknown {
    const label = `${row.label}.${spec.key}`;
    const found = this.#find(row, spec);
    if (found === null) {
      if (spec.isRequired) this.#refuse(label, this.placeOf(row.label, spec.key), 'is required');
      return spec.defaultValue;
    }
    this.#given.add(label);
    this.#places.set(label, found.place);
    if (spec.warning !== null) this.#log.warn(found.place, `has no effect: ${spec.warning}`);
    const result = this.#understand(row, spec, found);
    if ('value' in result) return result.value;
    this.#refuse(label, found.place, result.problem);
    return spec.defaultValue;
  }

  #refuse(label: string, place: Place, problem: string): void {
    this.#faulty.add(label);
    this.#log.fault(place, problem);
  }

  #find(row: Row, spec: KeySpec<unknown>): Found | null {
    const twin = isSecret(spec.kind) ? `${spec.key}_file` : null;
    const names = [spec.key, spec.alias, twin].filter((name) => name !== null);
    const present = names.filter((name) => Object.hasOwn(row.table, name));
    const [name, other] = present;
    if (name === undefined)
      return row.section.name === 'general' ? this.#findInEnvironment(spec, twin) : null;
    const place = {
      file: row.file.name,
      line: lineOf(row.file, [...row.path, name]),
      key: `${row.label}.${name}`,
    };
    if (other !== undefined) {
      this.#refuse(`${row.label}.${spec.key}`, place, `is given together with ${other}; keep one of them`);
    }
    return { place, raw: row.table[name], isFileName: name === twin, isText: false };
  }

  #findInEnvironment(spec: KeySpec<unknown>, twin: string | null): Found | null {
    const value = environmentValue(spec, this.#env);
    const twinValue =
      twin === null ? null : environmentValue({ ...spec, key: twin, extraEnv: [] }, this.#env);
    const chosen = value ?? twinValue;
    if (chosen === null) return null;
    const place = { file: 'environment', line: 0, key: chosen.name };
    if (value !== null && twinValue !== null) {
      this.#log.fault(place, `is given together with ${twinValue.name}; keep one of them`);
    }
    return { place, raw: chosen.text, isFileName: chosen === twinValue, isText: true };
  }

  #understand(row: Row, spec: KeySpec<unknown>, found: Found): ReadResult {
    if (found.isFileName) return this.#readTwin(row, spec, found.raw);
    const raw = found.isText ? valueOfText(spec.kind, String(found.raw)) : found.raw;
    const result = readValue(spec.kind, raw);
    if (spec.kind.name !== 'path' || !('value' in result)) return result;
    return { value: path.resolve(row.file.directory, String(result.value)) };
  }

  #readTwin(row: Row, spec: KeySpec<unknown>, raw: unknown): ReadResult {
    if (typeof raw !== 'string' || raw === '') return { problem: 'must be the name of a file' };
    const content = readSecretFile(path.resolve(row.file.directory, raw));
    if ('problem' in content) return content;
    if (spec.kind.name !== 'secrets') return readValue(spec.kind, content.value);
    return readValue(
      spec.kind,
      content.value.split(/\r?\n/).filter((line) => line !== ''),
    );
  }
}

/** `[general]` or `[[users]]`. */
export function headerOf(section: SchemaSection): string {
  return section.isArray ? `[[${section.name}]]` : `[${section.name}]`;
}

/** True for the name of a table inside another, such as turnstile.issuers. */
function isSection(name: string): boolean {
  return SCHEMA.some((section) => section.name === name);
}

/** Every name under which the section's keys may be given. */
function keyNames(section: SchemaSection): Set<string> {
  const names = new Set<string>();
  for (const spec of section.specs) {
    names.add(spec.key);
    if (spec.alias !== null) names.add(spec.alias);
    if (isSecret(spec.kind)) names.add(`${spec.key}_file`);
  }
  return names;
}
