/**
 * The words that mean something to the scan of a statement and to the walk over its tree: how a plain statement
 * begins, what must be looked at by the parser, what may stand before a parenthesis without being an unknown
 * function. One table for both, so that they cannot disagree. It knows nothing of sessions.
 */

/** What a word is, as bits. */
export const WordFlag = {
  /** Begins a statement that only reads or writes data. */
  Data: 1,
  /** Wherever it stands in such a statement, the parser has to look. */
  Suspect: 2,
  /** In front of a parenthesis it is a keyword, a type or a built-in function that leaves the session alone. */
  Harmless: 4,
  Into: 8,
  As: 16,
  Begin: 32,
  End: 64,
  /** UNION, INTERSECT, EXCEPT. */
  SetOperation: 128,
  /** pg_catalog. */
  Catalog: 256,
} as const;

/** Takes a session-level lock (manual, 9.28.10); the transaction-level ones end by themselves. */
export const ADVISORY_LOCKS: ReadonlySet<string> = new Set([
  'pg_advisory_lock',
  'pg_advisory_lock_shared',
  'pg_try_advisory_lock',
  'pg_try_advisory_lock_shared',
]);

/** Functions that run the SQL text they are given. */
export const QUERY_RUNNERS: ReadonlySet<string> = new Set([
  'query_to_xml',
  'query_to_xmlschema',
  'query_to_xml_and_xmlschema',
  'ts_stat',
  'ts_rewrite',
  'crosstab',
  'crosstab2',
  'crosstab3',
  'crosstab4',
  'crosstabn',
  'connectby',
  'xpath_table',
]);

const SUSPECTS = [
  'set_config',
  'setseed',
  'pg_settings',
  'temp',
  'temporary',
  ...ADVISORY_LOCKS,
  ...QUERY_RUNNERS,
];

/** Reserved words, type names and words of the grammar that are written before a parenthesis. */
const KEYWORDS = `
all and any array as asc between both by case check coalesce collate columns conflict cross cube current_time
current_timestamp desc distinct else end except exists extract fetch filter first for from full grouping greatest
group having ilike in inner intersect interval into is isnull join json_array json_arrayagg json_exists json_object
json_objectagg json_query json_scalar json_serialize json_table json_value key last lateral leading least left like
limit localtime localtimestamp matched materialized natural next normalize not notnull nullif nulls offset on only
operator or order ordinality outer over overlaps overlay partition position recursive returning right rollup row
rows select sets similar some substring system bernoulli table tablesample then to trailing treat trim union unique
using values varying when where window with within xmlconcat xmlelement xmlexists xmlforest xmlparse xmlpi xmlroot
xmlserialize xmltable update insert delete merge set do nothing cast escape symmetric passing
bigint bit boolean bpchar char character dec decimal double float int integer nchar numeric precision real smallint
text time timestamp timestamptz timetz uuid varbit varchar json jsonb bytea date name`;

/** Built-in functions that neither run other SQL nor change anything but data. */
const FUNCTIONS = `
abs acos acosd age array_agg array_append array_cat array_dims array_fill array_length array_lower array_ndims
array_position array_positions array_prepend array_remove array_replace array_reverse array_sample array_shuffle
array_sort array_to_json array_to_string array_to_tsvector array_upper ascii asin asind atan atan2 atan2d atand avg
bit_and bit_count bit_length bit_or bit_xor bool_and bool_or box btrim cardinality casefold cbrt ceil ceiling
char_length character_length chr circle clock_timestamp col_description concat concat_ws convert convert_from
convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp crc32 crc32c cume_dist current_catalog
current_database current_query current_role current_schema current_schemas current_setting current_user currval
date_add date_bin date_part date_subtract date_trunc decode degrees dense_rank diagonal div encode enum_first
enum_last enum_range erf erfc every exp factorial first_value floor format format_type gamma gcd
gen_random_uuid generate_series generate_subscripts get_bit get_byte has_any_column_privilege
has_column_privilege has_database_privilege has_function_privilege has_schema_privilege has_sequence_privilege
has_table_privilege host hostmask inet_client_addr inet_client_port inet_server_addr inet_server_port initcap
isempty isfinite json_agg json_array_elements json_array_elements_text json_array_length json_build_array
json_build_object json_each json_each_text json_extract_path json_extract_path_text json_object_agg
json_object_keys json_populate_record json_populate_recordset json_strip_nulls json_to_record json_to_recordset
json_typeof jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array
jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object
jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array
jsonb_path_query_first jsonb_populate_record jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax
jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof justify_days justify_hours justify_interval lag
last_value lastval lcm lead length lgamma ln log log10 lower lower_inc lower_inf lpad ltrim make_date make_interval
make_time make_timestamp make_timestamptz masklen max md5 min min_scale mod mode multirange network nextval now
nth_value ntile num_nonnulls num_nulls numnode obj_description octet_length parse_ident path percent_rank
percentile_cont percentile_disc pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared
pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_backend_pid pg_blocking_pids pg_cancel_backend
pg_client_encoding pg_collation_for pg_column_size pg_conf_load_time pg_current_snapshot pg_current_wal_lsn
pg_current_xact_id pg_current_xact_id_if_assigned pg_database_size pg_encoding_to_char pg_function_is_visible
pg_get_constraintdef pg_get_expr pg_get_function_arguments pg_get_function_identity_arguments
pg_get_function_result pg_get_functiondef pg_get_indexdef pg_get_partkeydef pg_get_ruledef
pg_get_serial_sequence pg_get_statisticsobjdef_columns pg_get_triggerdef pg_get_userbyid pg_get_viewdef
pg_has_role pg_indexes_size pg_input_is_valid pg_is_in_recovery pg_is_other_temp_schema pg_last_wal_receive_lsn
pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_listening_channels pg_my_temp_schema pg_notify
pg_opclass_is_visible pg_operator_is_visible pg_partition_tree pg_postmaster_start_time pg_relation_filenode
pg_relation_size pg_size_bytes pg_size_pretty pg_sleep pg_sleep_for pg_sleep_until pg_stat_get_activity
pg_table_is_visible pg_table_size pg_terminate_backend pg_total_relation_size pg_try_advisory_xact_lock
pg_try_advisory_xact_lock_shared pg_type_is_visible pg_typeof pg_wal_lsn_diff phraseto_tsquery pi
plainto_tsquery point polygon power pow quote_ident quote_literal quote_nullable radians random random_normal
range_agg range_intersect_agg range_merge rank regexp_count regexp_instr regexp_like regexp_match regexp_matches
regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr regr_avgx regr_avgy regr_count
regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy repeat replace reverse round row_number row_to_json
rpad rtrim scale session_user set_bit set_byte set_masklen setval setweight sha224 sha256 sha384 sha512
shobj_description sign sin sind sinh split_part sqrt starts_with statement_timestamp stddev stddev_pop stddev_samp
string_agg string_to_array string_to_table strip strpos substr sum tan tand tanh timeofday timezone to_ascii
to_bin to_char to_date to_hex to_json to_jsonb to_number to_oct to_regclass to_regproc to_regprocedure to_regrole
to_regtype to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim_array trim_scale trunc
ts_delete ts_filter ts_headline ts_rank ts_rank_cd tsvector_to_array txid_current txid_current_if_assigned
txid_current_snapshot unistr unnest upper upper_inc upper_inf user uuid_extract_timestamp uuid_extract_version
uuidv4 uuidv7 var_pop var_samp variance version websearch_to_tsquery width_bucket xml_is_well_formed xmlagg
xmlcomment xpath xpath_exists int4range int8range numrange tsrange tstzrange daterange`;

const FLAGS: ReadonlyMap<string, number> = buildFlags();

function buildFlags(): Map<string, number> {
  const flags = new Map<string, number>();
  const add = (words: Iterable<string>, flag: number): void => {
    for (const word of words) flags.set(word, (flags.get(word) ?? 0) | flag);
  };
  add(['select', 'insert', 'update', 'delete', 'with', 'values', 'table', 'merge'], WordFlag.Data);
  add(SUSPECTS, WordFlag.Suspect);
  add(`${KEYWORDS} ${FUNCTIONS}`.trim().split(/\s+/), WordFlag.Harmless);
  add(['into'], WordFlag.Into);
  add(['as'], WordFlag.As);
  add(['begin'], WordFlag.Begin);
  add(['commit', 'end', 'rollback', 'abort'], WordFlag.End);
  add(['union', 'intersect', 'except'], WordFlag.SetOperation);
  add(['pg_catalog'], WordFlag.Catalog);
  return flags;
}

/** The flags of a name spelled as PostgreSQL stores it; 0 for a word that means nothing here. */
export function flagsOfName(name: string): number {
  return FLAGS.get(name) ?? 0;
}

const SLOTS_COUNT = 4096;
/** The words in open addressing: '' ends a search. Few share a slot, so most words of a text cost no comparison. */
const SLOT_WORDS: readonly string[] = buildSlots();
const SLOT_FLAGS: Int32Array = Int32Array.from(SLOT_WORDS, (word) => FLAGS.get(word) ?? 0);

function buildSlots(): string[] {
  const slots = new Array<string>(SLOTS_COUNT).fill('');
  for (const word of FLAGS.keys()) {
    let slot = slotOf(word, 0, word.length);
    while (slots[slot] !== '') slot = (slot + 1) & (SLOTS_COUNT - 1);
    slots[slot] = word;
  }
  return slots;
}

/** From the first, middle and last letters, without their case, and the length. */
function slotOf(text: string, start: number, end: number): number {
  const length = end - start;
  const first = text.charCodeAt(start) & 31;
  const middle = text.charCodeAt(start + (length >> 1)) & 31;
  const last = text.charCodeAt(end - 1) & 31;
  return (first * 131 + middle * 1031 + last * 33 + length * 397) & (SLOTS_COUNT - 1);
}

/** The flags of the word at `start` up to `end`, in any case of letters; 0 for none. Allocates nothing. */
export function flagsAt(text: string, start: number, end: number): number {
  if (end <= start) return 0;
  let slot = slotOf(text, start, end);
  for (;;) {
    const word = SLOT_WORDS[slot]!;
    if (word === '') return 0;
    if (sameWord(text, start, end, word)) return SLOT_FLAGS[slot]!;
    slot = (slot + 1) & (SLOTS_COUNT - 1);
  }
}

/** ASCII only, as PostgreSQL's keywords are. `_` and DEL fold together, which can only make a caller look twice. */
function sameWord(text: string, start: number, end: number, word: string): boolean {
  if (word.length !== end - start) return false;
  for (let index = 0; index < word.length; index++) {
    if ((text.charCodeAt(start + index) | 0x20) !== (word.charCodeAt(index) | 0x20)) return false;
  }
  return true;
}

/** True for pg_temp, pg_temp_3 and whatever else begins like them. */
export function isTempSchemaAt(text: string, start: number, end: number): boolean {
  return (
    end - start >= 7 &&
    (text.charCodeAt(start) | 0x20) === 0x70 &&
    sameWord(text, start, start + 7, 'pg_temp')
  );
}
