/*
 * What a handler must not do, and a server survives all the same: both take it down, with everybody who is connected.
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(poison_panic);
PG_FUNCTION_INFO_V1(poison_abort);

Datum
poison_panic(PG_FUNCTION_ARGS)
{
	ereport(PANIC, (errmsg("poison: the handler panics")));
	PG_RETURN_VOID();
}

Datum
poison_abort(PG_FUNCTION_ARGS)
{
	abort();
	PG_RETURN_VOID();
}
