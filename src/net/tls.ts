/**
 * Our side of TLS for clients: the certificate and its key from two PEM files, and the authorities for certificates
 * of clients, checked at load, replaceable while connections live. It knows nothing of PostgreSQL but the ALPN name.
 * TLS towards PostgreSQL is not made here.
 */

import { constants, X509Certificate } from 'node:crypto';
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
  #asksForCertificate: boolean;

  private constructor(context: SecureContext, asksForCertificate: boolean) {
    this.#context = context;
    this.#asksForCertificate = asksForCertificate;
  }

  /**
   * Reads `tls_certificate` (the chain, leaf first) and `tls_private_key`, and `tls_client_ca_certificate` if there is
   * one: then clients are asked for a certificate, which they need not have. Throws PgError F0000 that names the file
   * at fault.
   */
  static load(
    certificatePath: string,
    privateKeyPath: string,
    clientCaPath: string | null = null,
  ): ServerCertificate {
    const context = loadContext(certificatePath, privateKeyPath, clientCaPath);
    return new ServerCertificate(context, clientCaPath !== null);
  }

  /** Reads the files anew, for the connections to come. Throws as `load` does, and then keeps what it had. */
  reload(certificatePath: string, privateKeyPath: string, clientCaPath: string | null = null): void {
    this.#context = loadContext(certificatePath, privateKeyPath, clientCaPath);
    this.#asksForCertificate = clientCaPath !== null;
  }

  /** Begins the server's part of a handshake on a connected socket. */
  accept(socket: Socket): TLSSocket {
    return new TLSSocket(socket, {
      isServer: true,
      secureContext: this.#context,
      ALPNProtocols: [ALPN_POSTGRESQL],
      // Whether a certificate is needed depends on the user, whom the handshake does not know yet.
      requestCert: this.#asksForCertificate,
      rejectUnauthorized: false,
    });
  }
}

function loadContext(
  certificatePath: string,
  privateKeyPath: string,
  clientCaPath: string | null,
): SecureContext {
  const cert = readPem('tls_certificate', certificatePath);
  const key = readPem('tls_private_key', privateKeyPath);
  const ca = clientCaPath === null ? null : readAuthorities(clientCaPath);
  try {
    return createSecureContext({
      cert,
      key,
      ...(ca !== null && { ca }),
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

/** OpenSSL would take a file without a certificate for an empty list, and trust nobody without a word. */
function readAuthorities(path: string): Buffer {
  const pem = readPem('tls_client_ca_certificate', path);
  try {
    new X509Certificate(pem);
  } catch (error) {
    throw configFault(`tls_client_ca_certificate "${path}" holds no certificate`, error);
  }
  return pem;
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
