/**
 * The client's half of SCRAM-SHA-256 (RFC 5802, RFC 7677) for tests, without channel binding. Written on its own,
 * so that a fault in the pooler's half cannot hide behind the same fault here.
 */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto';

export class ScramClient {
  readonly #password: string;
  readonly #nonce: string;
  readonly #flag: string;
  #signature = '';

  /** `gs2Flag` 'n' (default): cannot bind; 'y': could, but the server does not offer it. */
  constructor(password: string, gs2Flag: 'n' | 'y' = 'n') {
    this.#password = password;
    this.#flag = gs2Flag;
    this.#nonce = randomBytes(18).toString('base64');
  }

  first(): string {
    return `${this.#flag},,n=,r=${this.#nonce}`;
  }

  /** Answers the server's first message. */
  final(serverFirst: string): string {
    const [nonce, salt, iterations] = /^r=([^,]+),s=([^,]+),i=(\d+)$/.exec(serverFirst)?.slice(1) ?? [];
    if (nonce === undefined || salt === undefined || !nonce.startsWith(this.#nonce)) {
      throw new Error('the SCRAM server did not take up the nonce');
    }
    const salted = pbkdf2Sync(
      this.#password.normalize('NFKC'),
      Buffer.from(salt, 'base64'),
      Number(iterations),
      32,
      'sha256',
    );
    const clientKey = hmac(salted, 'Client Key');
    const storedKey = createHash('sha256').update(clientKey).digest();
    const withoutProof = `c=${Buffer.from(`${this.#flag},,`).toString('base64')},r=${nonce}`;
    const message = `${this.first().slice(3)},${serverFirst},${withoutProof}`;
    const proof = hmac(storedKey, message);
    for (let index = 0; index < proof.length; index++) {
      proof[index] = (proof[index] as number) ^ (clientKey[index] as number);
    }
    this.#signature = hmac(hmac(salted, 'Server Key'), message).toString('base64');
    return `${withoutProof},p=${proof.toString('base64')}`;
  }

  /** Throws when the server did not prove that it knows the password too. */
  check(serverFinal: string): void {
    if (serverFinal !== `v=${this.#signature}`) throw new Error('the SCRAM server did not prove itself');
  }
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest();
}
