/** The configuration in force as rows for a console: key, value, default. Secrets are `****`; reads no file. */
import type { Config } from './config.ts';
import { formatValue, isSecret, type Section } from './key-spec.ts';
import {
  ADMIN,
  CLAIM_SETTINGS,
  GENERAL,
  ISSUERS,
  JWT,
  LOGIN_RULES,
  ROLE_RULES,
  TCP,
  TURNSTILE,
  TURNSTILE_DATABASES,
  TURNSTILE_USERS,
} from './schema.ts';

export interface ConfigRow {
  /** As in the file for [general], `section.key` for the others. */
  key: string;
  value: string;
  /** Empty for a key without a default. */
  defaultValue: string;
}

/**
 * One row per key of [general], [turnstile] with its lists, [tcp] and [admin], in the order of the reference. A key
 * of a list carries the index of its row: `turnstile.issuers[0].issuer`.
 */
export function describeConfig(config: Config): ConfigRow[] {
  return [
    ...rows('', GENERAL, config.general),
    ...rows('', JWT, config.jwt),
    ...rows('turnstile.', TURNSTILE, config.turnstile),
    ...list('turnstile.issuers', ISSUERS, config.issuers),
    ...list('turnstile.login_rules', LOGIN_RULES, config.loginRules),
    ...list('turnstile.role_rules', ROLE_RULES, config.roleRules),
    ...list('turnstile.claim_settings', CLAIM_SETTINGS, config.claimSettings),
    ...list('turnstile.databases', TURNSTILE_DATABASES, config.turnstileDatabases),
    ...list('turnstile.users', TURNSTILE_USERS, config.turnstileUsers),
    ...rows('tcp.', TCP, config.tcp),
    ...rows('admin.', ADMIN, config.admin),
  ];
}

function list<T>(name: string, specs: Section<T>, values: readonly T[]): ConfigRow[] {
  return values.flatMap((value, index) => rows(`${name}[${index}].`, specs, value));
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
