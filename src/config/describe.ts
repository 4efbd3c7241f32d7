/** The configuration in force as rows for a console: key, value, default. Secrets are `****`; reads no file. */
import type { Config } from './config.ts';
import { formatValue, isSecret, type Section } from './key-spec.ts';
import { ADMIN, GENERAL, JWT, TCP, TURNSTILE } from './schema.ts';

export interface ConfigRow {
  /** As in the file for [general], `section.key` for the others. */
  key: string;
  value: string;
  /** Empty for a key without a default. */
  defaultValue: string;
}

/** One row per key of [general], [turnstile], [tcp] and [admin], in the order of the reference. */
export function describeConfig(config: Config): ConfigRow[] {
  return [
    ...rows('', GENERAL, config.general),
    ...rows('', JWT, config.jwt),
    ...rows('turnstile.', TURNSTILE, config.turnstile),
    ...rows('tcp.', TCP, config.tcp),
    ...rows('admin.', ADMIN, config.admin),
  ];
}

function rows<T, S extends T>(prefix: string, specs: Section<T>, values: S): ConfigRow[] {
  return (Object.keys(specs) as (keyof T)[]).map((field) => {
    const spec = specs[field];
    return {
      key: prefix + spec.key,
      value:
        isSecret(spec.kind) && values[field] === null ? '' : plain(formatValue(spec.kind, values[field])),
      defaultValue: plain(formatValue(spec.kind, spec.defaultValue)),
    };
  });
}

/** A console shows text, not TOML: one string goes without its quotes. */
function plain(literal: string): string {
  return literal.startsWith('"') ? (JSON.parse(literal) as string) : literal.replace(/^'(.*)'$/su, '$1');
}
