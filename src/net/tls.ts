/**
 * Our side of TLS for clients: the certificate and its key from two PEM files, checked at load, replaceable while
 * connections live. It knows nothing of PostgreSQL but the ALPN name. TLS towards PostgreSQL is not made here.
 */

import { constants } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { createSecureContext, type SecureContext, TLSSocket } from 'node:tls';
import { PgError, SqlState } from '../protocol/pg-error.ts';

/** The name of PostgreSQL's protocol in the TLS handshake (registered with IANA; PG_ALPN_PROTOCOL). */
export const ALPN_POSTGRESQL = 'postgresql';

/** First byte of a TLS handshake record (RFC 8446 section 5.1); no startup packet can begin with it. */
export const TLS_HANDSHAKE_BYTE = 0x16;

/** Invariant: holds a certificate that fits its key at all times; a reload that fails changes nothing. */
export class ServerCertificate {
  #context: SecureContext;

  private constructor(context: SecureContext) {
    this.#context = context;
  }

  /**
   * Reads `tls_certificate` (the chain, leaf first) and `tls_private_key`. Throws PgError F0000 that names the file
   * at fault.
   */
  static load(certificatePath: string, privateKeyPath: string): ServerCertificate {
    return new ServerCertificate(loadContext(certificatePath, privateKeyPath));
  }

  /** Reads the files anew, for the connections to come. Throws as `load` does, and then keeps what it had. */
  reload(certificatePath: string, privateKeyPath: string): void {
    this.#context = loadContext(certificatePath, privateKeyPath);
  }

  /** Begins the server's part of a handshake on a connected socket. */
  accept(socket: Socket): TLSSocket {
    return new TLSSocket(socket, {
      isServer: true,
      secureContext: this.#context,
      ALPNProtocols: [ALPN_POSTGRESQL],
    });
  }
}

function loadContext(certificatePath: string, privateKeyPath: string): SecureContext {
  const cert = readPem('tls_certificate', certificatePath);
  const key = readPem('tls_private_key', privateKeyPath);
  try {
    return createSecureContext({
      cert,
      key,
      minVersion: 'TLSv1.2',
      // Clients of PostgreSQL do not resume sessions; tickets would only cost bytes and memory on each login.
      secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_CIPHER_SERVER_PREFERENCE,
    });
  } catch (error) {
    throw configFault(
      `tls_certificate "${certificatePath}" and tls_private_key "${privateKeyPath}" do not make a TLS identity`,
      error,
    );
  }
}

function readPem(key: string, path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw configFault(`${key} "${path}" cannot be read`, error);
  }
}

/** OpenSSL's and the file system's words (a code and a sentence) never hold key material. */
function configFault(message: string, cause: unknown): PgError {
  const words = cause instanceof Error ? `: ${cause.message}` : '';
  return new PgError({ code: SqlState.ConfigFileError, message: `${message}${words}`, cause });
}
