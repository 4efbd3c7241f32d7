/**
 * Opens the key source of an entry of the configuration: a file or an address, of an issuer or of the `jwt_*` keys.
 * Owns which of them wins and the words that the log gets; what the keys are for is not known here.
 */
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Config, IssuerConfig } from '../config/config.ts';
import type { SkippedJwk } from './jwks-document.ts';
import { fetchByDiscovery, fetchFromUrl } from './jwks-fetch.ts';
import { JwksFileSource } from './jwks-file-source.ts';
import { type JwksEvent, JwksSource } from './jwks-source.ts';
import type { KeySource } from './key-source.ts';
import { PemKeySource } from './pem-key-source.ts';
import { KeyFileFault } from './watched-file.ts';

/** `issuer` is null for the `jwt_*` keys. Text in all of them is fit for a log. */
export interface KeySourceListeners {
  /** A file that changed cannot be used; the old keys stay in use. */
  onFileFault?: (issuer: string | null, message: string) => void;
  /** A file gave other keys, in words. */
  onFileLoaded?: (issuer: string | null, description: string, skipped: readonly SkippedJwk[]) => void;
  onJwksEvent?: (issuer: string | null, event: JwksEvent) => void;
}

/** Where one issuer's keys are. */
export type KeyPlace = Pick<
  IssuerConfig,
  'publicKeyFile' | 'jwksFile' | 'jwksUrl' | 'discovery' | 'jwksOrigins' | 'jwksCacheTtlSeconds' | 'caFile'
> & {
  readonly source: string | null;
};

/** The place of the `jwt_*` keys. */
export function flatKeyPlace({ jwt }: Pick<Config, 'jwt'>): KeyPlace {
  const { publicKeyFile, jwksUrl, jwksCacheTtlSeconds } = jwt;
  return {
    source: null,
    publicKeyFile,
    jwksFile: null,
    jwksUrl,
    discovery: false,
    jwksOrigins: [],
    jwksCacheTtlSeconds,
    caFile: null,
  };
}

/**
 * Opens the source; a file beats an address, as in PgDog. Throws `KeyFileFault` for an unfit file and `RangeError` for
 * an unfit address or a place without any; sends no request.
 */
export async function openKeySource(
  place: KeyPlace,
  config: Pick<Config, 'turnstile'>,
  listeners: KeySourceListeners,
): Promise<KeySource> {
  const { source, publicKeyFile, jwksFile } = place;
  const { allowMissingKid } = config.turnstile;
  const onFault = (message: string): void => listeners.onFileFault?.(source, message);
  if (publicKeyFile !== null) {
    const onReload = (description: string): void => listeners.onFileLoaded?.(source, description, []);
    return PemKeySource.open({ path: publicKeyFile, onFault, onReload });
  }
  if (jwksFile !== null) {
    const onLoad = (keys: number, skipped: readonly SkippedJwk[]): void =>
      listeners.onFileLoaded?.(source, `${keys} keys from the JWKS file`, skipped);
    return JwksFileSource.open({ path: jwksFile, allowMissingKid, onFault, onLoad });
  }
  return openJwksSource(place, config, listeners);
}

async function openJwksSource(
  place: KeyPlace,
  config: Pick<Config, 'turnstile'>,
  listeners: KeySourceListeners,
): Promise<JwksSource> {
  const { source, jwksUrl, discovery, jwksOrigins } = place;
  const { allowHttpIssuers, allowMissingKid } = config.turnstile;
  const options = {
    allowHttp: allowHttpIssuers,
    ca: place.caFile === null ? null : await readCa(place.caFile),
  };
  if (jwksUrl === null && !(discovery && source !== null)) {
    throw new RangeError('no public key file, no JWKS file, no JWKS address and no discovery is set');
  }
  return new JwksSource({
    fetch:
      jwksUrl !== null
        ? fetchFromUrl(jwksUrl, options)
        : fetchByDiscovery({ ...options, issuer: source ?? '', origins: jwksOrigins }),
    cacheTtlMs: place.jwksCacheTtlSeconds * 1_000,
    allowMissingKid,
    onEvent: (event) => listeners.onJwksEvent?.(source, event),
  });
}

async function readCa(path: string): Promise<string> {
  try {
    const text = await readFile(path, 'utf8');
    new X509Certificate(text);
    return text;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // Otherwise a wrong file would show only when the issuer is asked.
    const isSystem = code !== undefined && /^E[A-Z]+$/.test(code);
    throw new KeyFileFault(
      isSystem ? `the ca_file cannot be read (${code})` : 'the ca_file holds no PEM certificate',
    );
  }
}
