//! A look at the utility commands that want a database for themselves, before they run, and at those that others have to be told of.

use crate::pg::encoding;
use crate::pg::error::at_boundary;
use crate::pg::statement;
use pgrx::pg_sys;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

static PREVIOUS: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();
static CALLBACKS: OnceLock<Callbacks> = OnceLock::new();

#[derive(Clone, Copy)]
pub struct Callbacks {
    /// A command is about to need the database of this name without other sessions in it.
    pub before_exclusive: fn(&str),
    /// A database was created.
    pub after_create: fn(),
    /// Tables, schemas or extensions were dropped.
    pub after_drop: fn(),
    /// SET CONSTRAINTS is about to be executed: it is in force until the transaction ends, and not just the subtransaction.
    pub before_constraints: fn(),
    /// A prepared transaction was committed, whatever becomes of the present one.
    pub after_commit_prepared: fn(),
}

pub fn install(callbacks: Callbacks) {
    CALLBACKS.get_or_init(|| callbacks);
    // SAFETY: hooks are chained while the postmaster loads its libraries, which is single-threaded.
    unsafe {
        PREVIOUS.get_or_init(|| pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

unsafe fn text(p: *const c_char) -> Option<String> {
    // SAFETY: the caller passes a string of the parse tree, or null.
    unsafe { encoding::from_c(p) }
}

/// The string value of option `name` in a list of DefElem.
unsafe fn option(list: *mut pg_sys::List, name: &str) -> Option<String> {
    // SAFETY: the caller passes an option list of the parse tree, whose elements are DefElem.
    unsafe {
        let count = if list.is_null() { 0 } else { (*list).length };
        (0..count).find_map(|i| {
            let element = &*pg_sys::list_nth(list, i).cast::<pg_sys::DefElem>();
            let matches = CStr::from_ptr(element.defname).to_bytes() == name.as_bytes();
            if !matches || element.arg.is_null() {
                return None;
            }
            text(pg_sys::defGetString(std::ptr::from_ref(element).cast_mut()))
        })
    }
}

/// The database that the command must have for itself.
unsafe fn exclusive_database(statement: *mut pg_sys::Node) -> Option<String> {
    // SAFETY: the tag tells the node's type.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_DropdbStmt => text((*statement.cast::<pg_sys::DropdbStmt>()).dbname),
            pg_sys::NodeTag::T_CreatedbStmt => option((*statement.cast::<pg_sys::CreatedbStmt>()).options, "template"),
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let alter = &*statement.cast::<pg_sys::AlterDatabaseStmt>();
                option(alter.options, "tablespace").and_then(|_| text(alter.dbname))
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = &*statement.cast::<pg_sys::RenameStmt>();
                (rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE).then(|| text(rename.subname)).flatten()
            }
            _ => None,
        }
    }
}

/// Can the command drop a table that is not temporary, or an extension?
unsafe fn drops(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_DropOwnedStmt => true,
            pg_sys::NodeTag::T_DropStmt => matches!(
                (*statement.cast::<pg_sys::DropStmt>()).removeType,
                pg_sys::ObjectType::OBJECT_TABLE
                    | pg_sys::ObjectType::OBJECT_SCHEMA
                    | pg_sys::ObjectType::OBJECT_EXTENSION
            ),
            _ => false,
        }
    }
}

unsafe fn commits_prepared(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type.
    unsafe {
        (*statement).type_ == pg_sys::NodeTag::T_TransactionStmt
            && (*statement.cast::<pg_sys::TransactionStmt>()).kind
                == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
    }
}

unsafe fn copies_in(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type.
    unsafe { (*statement).type_ == pg_sys::NodeTag::T_CopyStmt && (*statement.cast::<pg_sys::CopyStmt>()).is_from }
}

/// What to do around one command.
struct Around {
    exclusive: Option<String>,
    sets_constraints: bool,
    after: After,
}

#[derive(Clone, Copy)]
struct After {
    creates: bool,
    drops: bool,
    commits_prepared: bool,
    copy: Option<statement::Number>,
}

/// Looks at the statement.
unsafe fn around(statement: *mut pg_sys::PlannedStmt) -> Around {
    // SAFETY: the statement is the server's, alive during the call.
    unsafe {
        let node = (*statement).utilityStmt;
        Around {
            exclusive: exclusive_database(node),
            sets_constraints: (*node).type_ == pg_sys::NodeTag::T_ConstraintsSetStmt,
            after: After {
                creates: (*node).type_ == pg_sys::NodeTag::T_CreatedbStmt,
                drops: drops(node),
                commits_prepared: commits_prepared(node),
                copy: copies_in(node).then(|| statement::open(true)).flatten(),
            },
        }
    }
}

fn before(around: &Around) {
    let Some(callbacks) = CALLBACKS.get() else { return };
    if let Some(database) = &around.exclusive {
        (callbacks.before_exclusive)(database);
    }
    if around.sets_constraints {
        (callbacks.before_constraints)();
    }
}

impl After {
    fn is_anything(self) -> bool {
        self.creates || self.drops || self.commits_prepared || self.copy.is_some()
    }

    fn call(self) {
        if let Some(copy) = self.copy {
            statement::close(copy);
        }
        let Some(callbacks) = CALLBACKS.get() else { return };
        if self.creates {
            (callbacks.after_create)();
        }
        if self.drops {
            (callbacks.after_drop)();
        }
        if self.commits_prepared {
            (callbacks.after_commit_prepared)();
        }
    }
}

/// The hook. The command itself runs outside any boundary of Rust, so that its errors pass as they are: SQLSTATEs that users
/// made up, names of constraints, positions. Nothing that would have to be dropped is alive meanwhile.
#[allow(clippy::too_many_arguments, reason = "the hook's signature")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    unsafe extern "C-unwind" {
        fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
    // SAFETY: the arguments are the server's and are passed on as they came; only the statement is looked at.
    unsafe {
        let after = at_boundary(|| {
            let around = around(statement);
            before(&around);
            around.after
        });
        match PREVIOUS.get() {
            Some(Some(previous)) => {
                previous(statement, query, read_only_tree, context, params, environment, destination, completion);
            }
            _ => standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                params,
                environment,
                destination,
                completion,
            ),
        }
        if after.is_anything() {
            at_boundary(|| after.call());
        }
    }
}
