/** The name and version of the program as clients of the console see them, read once from the package's manifest. */
import { readFileSync } from 'node:fs';

function packageVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return (manifest as { version: string }).version;
}

/** What SHOW VERSION answers. */
export const PRODUCT_VERSION: string = `pgturnstile ${packageVersion()}`;
/** `server_version` of the console: begins with the PgBouncer release whose columns it has, as tools compare it. */
export const CONSOLE_SERVER_VERSION: string = `1.25.0/${PRODUCT_VERSION}`;
