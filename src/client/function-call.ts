/**
 * The function call protocol names functions by OID, so no text shows what is called. In a guarded session only
 * the large-object functions pass, which libpq's lo_* calls use (PostgreSQL manual, "Large Objects"); everything
 * else has a SELECT form that can be read.
 */

/** lo_open, lo_close, loread, lowrite, lo_lseek(64), lo_creat, lo_create, lo_tell(64), lo_truncate(64), lo_unlink. */
const LARGE_OBJECT_FUNCTIONS: ReadonlySet<number> = new Set([
  952, 953, 954, 955, 956, 957, 958, 964, 715, 1004, 3170, 3171, 3172,
]);

/** True for functions whose OID PostgreSQL has fixed (pg_proc.dat) and that cannot reach a setting. */
export function isHarmlessFunction(oid: number): boolean {
  return LARGE_OBJECT_FUNCTIONS.has(oid);
}
