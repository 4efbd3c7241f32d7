/**
 * The environment as a source of [general] keys: `PGDOG_<KEY>` and the few names that PgDog spells otherwise. Owns
 * which variable counts and which is somebody else's; what a value means is key-spec.ts's. Reads no process.env:
 * the variables are an argument.
 */
import type { KeySpec } from './key-spec.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

export interface EnvironmentValue {
  readonly name: string;
  readonly text: string;
}

/** The name of the variable that belongs to a [general] key. */
export function environmentName(key: string): string {
  return `PGDOG_${key.toUpperCase()}`;
}

/**
 * The variable that gives the key, or null. An empty variable counts as unset. Two variables are passed over
 * because they are meant for others: Kubernetes sets `PGDOG_PORT=tcp://…` in every pod beside a service of that
 * name, and a RUST_LOG that is more than a level is a filter of some Rust program.
 */
export function environmentValue(spec: KeySpec<unknown>, env: Environment): EnvironmentValue | null {
  for (const name of [environmentName(spec.key), ...spec.extraEnv]) {
    const text = env[name]?.trim() ?? '';
    if (text === '' || (spec.key === 'port' && text.startsWith('tcp://'))) continue;
    if (name === 'RUST_LOG') {
      const level = text.toLowerCase();
      if (!/^(trace|debug|info|warn|error)$/.test(level)) continue;
      return { name, text: level };
    }
    return { name, text };
  }
  return null;
}
