/** Picks the key source that the configuration names: the PEM file wins over the JWKS address, as in PgDog. */
import type { Config } from '../config/config.ts';
import { type JwksEvent, JwksSource } from './jwks-source.ts';
import type { KeySource } from './key-source.ts';
import { PemKeySource } from './pem-key-source.ts';

export interface KeySourceListeners {
  onPemFault?: (message: string) => void;
  onPemReload?: (description: string) => void;
  onJwksEvent?: (event: JwksEvent) => void;
}

/**
 * The key source, or null when neither `jwt_public_key_file` nor `jwt_jwks_url` is set. Throws `KeyFileFault` for an
 * unfit file and `RangeError` for an unfit address; sends no request.
 */
export async function openKeySource(
  config: Pick<Config, 'jwt' | 'turnstile'>,
  listeners: KeySourceListeners = {},
): Promise<KeySource | null> {
  const { publicKeyFile, jwksUrl, jwksCacheTtlSeconds } = config.jwt;
  if (publicKeyFile !== null) {
    return PemKeySource.open({
      path: publicKeyFile,
      ...(listeners.onPemFault && { onFault: listeners.onPemFault }),
      ...(listeners.onPemReload && { onReload: listeners.onPemReload }),
    });
  }
  if (jwksUrl === null) return null;
  return new JwksSource({
    url: jwksUrl,
    allowHttp: config.turnstile.allowHttpIssuers,
    cacheTtlMs: jwksCacheTtlSeconds * 1_000,
    ...(listeners.onJwksEvent && { onEvent: listeners.onJwksEvent }),
  });
}
