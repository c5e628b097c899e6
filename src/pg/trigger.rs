//! What a trigger function is called with.

use crate::pg::encoding;
use crate::pg::relation::attribute;
use pgrx::itemptr::item_pointer_to_u64;
use pgrx::pg_sys;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// One call of an AFTER trigger. The rows live until the function returns.
pub struct Call(*mut pg_sys::TriggerData);

/// One row of the call.
#[derive(Clone, Copy)]
pub struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

/// Compares up to the name's end: finding the column name's own end first would take most of the time.
fn is_named(column: &pg_sys::FormData_pg_attribute, name: &str) -> bool {
    let own = &column.attname.data;
    own.get(name.len()) == Some(&0) && own.iter().zip(name.as_bytes()).all(|(own, byte)| *own as u8 == *byte)
}

impl Call {
    /// None: the function was not called as an AFTER trigger.
    ///
    /// # Safety
    /// `fcinfo` is what the server called the function with, and the value is used only during that call.
    pub unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> Option<Self> {
        // SAFETY: a trigger call has a TriggerData as its context; the tag is checked first.
        unsafe {
            let context = (*fcinfo).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                return None;
            }
            let data = context.cast::<pg_sys::TriggerData>();
            let timing = pg_sys::TRIGGER_EVENT_TIMINGMASK;
            ((*data).tg_event & timing == pg_sys::TRIGGER_EVENT_AFTER).then_some(Self(data))
        }
    }

    fn data(&self) -> &pg_sys::TriggerData {
        // SAFETY: valid for the duration of the call by the promise made to `new`.
        unsafe { &*self.0 }
    }

    pub fn event(&self) -> Event {
        match self.data().tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Event::Insert,
            pg_sys::TRIGGER_EVENT_UPDATE => Event::Update,
            pg_sys::TRIGGER_EVENT_DELETE => Event::Delete,
            _ => Event::Truncate,
        }
    }

    pub fn is_row(&self) -> bool {
        self.data().tg_event & pg_sys::TRIGGER_EVENT_ROW != 0
    }

    pub fn relation(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open during the call.
        unsafe { (*self.data().tg_relation).rd_id }
    }

    pub fn relation_is_partition(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*(*self.data().tg_relation).rd_rel).relispartition }
    }

    pub fn trigger(&self) -> pg_sys::Oid {
        // SAFETY: the trigger's description is valid during the call.
        unsafe { (*self.data().tg_trigger).tgoid }
    }

    /// Does an INSERT into the relation run no other AFTER trigger than this one, but for checks of the server's own?
    pub fn is_without_others(&self) -> bool {
        const CHECKS: [u32; 2] = [pg_sys::F_RI_FKEY_CHECK_INS, pg_sys::F_UNIQUE_KEY_RECHECK];
        // SAFETY: the relation is open during the call, and has triggers, as it was called for one.
        unsafe {
            let triggers = &*(*self.data().tg_relation).trigdesc;
            let own = (*self.data().tg_trigger).tgfoid;
            std::slice::from_raw_parts(triggers.triggers, triggers.numtriggers as usize).iter().all(|trigger| {
                let fires = u32::from(trigger.tgtype as u16);
                let after = fires & (pg_sys::TRIGGER_TYPE_BEFORE | pg_sys::TRIGGER_TYPE_INSTEAD) == 0;
                let concerned = after && fires & pg_sys::TRIGGER_TYPE_INSERT != 0;
                !concerned || trigger.tgfoid == own || CHECKS.contains(&trigger.tgfoid.to_u32())
            })
        }
    }

    pub fn argument(&self, n: usize) -> Option<String> {
        // SAFETY: as above; n is checked against the number of arguments.
        unsafe {
            let trigger = &*self.data().tg_trigger;
            if n >= trigger.tgnargs as usize {
                return None;
            }
            encoding::from_c(*trigger.tgargs.add(n))
        }
    }

    fn row(&self, tuple: pg_sys::HeapTuple) -> Option<Row> {
        // SAFETY: the relation is open during the call.
        let descriptor = unsafe { (*self.data().tg_relation).rd_att };
        (!tuple.is_null()).then_some(Row { tuple, descriptor })
    }

    /// The row inserted, the old row of an UPDATE, the row deleted.
    pub fn first_row(&self) -> Option<Row> {
        self.row(self.data().tg_trigtuple)
    }

    /// The new row of an UPDATE.
    pub fn second_row(&self) -> Option<Row> {
        self.row(self.data().tg_newtuple)
    }
}

impl Row {
    /// Where the table has it.
    pub fn tid(&self) -> u64 {
        // SAFETY: as for `get`.
        item_pointer_to_u64(unsafe { (*self.tuple).t_self })
    }

    /// The value of the column, which may be null. None: there is no column of that name and type, or of a domain over it.
    pub fn get(&self, name: &str, type_id: pg_sys::Oid) -> Option<Option<pg_sys::Datum>> {
        // SAFETY: tuple and descriptor belong together and live as long as the trigger call.
        unsafe {
            let natts = (*self.descriptor).natts as usize;
            let find = |is_of_type: &dyn Fn(pg_sys::Oid) -> bool| {
                (0..natts).find(|i| {
                    let column = &*attribute(self.descriptor, *i);
                    !column.attisdropped && is_of_type(column.atttypid) && is_named(column, name)
                })
            };
            let position = find(&|own| own == type_id).or_else(|| find(&|own| pg_sys::getBaseType(own) == type_id))?;
            let mut null = false;
            let datum = pg_sys::heap_getattr(self.tuple, position as i32 + 1, self.descriptor, &mut null);
            Some((!null).then_some(datum))
        }
    }
}

/// Defines the C entry points of trigger functions: `$symbol` calls `$body: fn(&Call)`, unless something else than an AFTER trigger
/// has called it. For that the error has a hint.
macro_rules! trigger_functions {
    ($hint:literal, $($symbol:ident, $finfo:ident => $body:path;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[doc(hidden)]
            pub extern "C" fn $finfo() -> &'static pgrx::pg_sys::Pg_finfo_record {
                const RECORD: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
                &RECORD
            }

            #[unsafe(no_mangle)]
            #[doc(hidden)]
            pub unsafe extern "C-unwind" fn $symbol(fcinfo: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
                // SAFETY: the server calls this with a valid fcinfo, and the call value does not outlive it.
                unsafe {
                    crate::pg::error::at_boundary(|| match crate::pg::trigger::Call::new(fcinfo) {
                        Some(call) => $body(&call),
                        None => crate::pg::error::PgError::new(
                            pgrx::PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                            "function was not called as an AFTER trigger",
                        )
                        .hint($hint)
                        .raise(),
                    })
                }
                pgrx::pg_sys::Datum::from(0)
            }
        )*
    };
}

pub(crate) use trigger_functions;
