//! Handlers that take the server down themselves: an extension in C that panics, and one that calls abort().
//!
//! Only a superuser can have them called, and only in C. A panic in Rust takes nobody down: that of this extension, which is
//! how each of its errors is raised, becomes an ERROR at the boundary to the server, as the kind "nan" shows; its assertions are about
//! its shared memory, and no statement leads to one that fails.

use server_tests::compile_functions;

/// What the panic says, which no other server log may hold.
pub const PANIC_MESSAGE: &str = "PANIC:  poison: the handler panics";

/// The statements by which a superuser creates the functions in a database and gives them to `owners`.
pub fn create(owners: &[&str]) -> String {
    let library = compile_functions("poison", include_str!("poison.c"));
    let functions = ["panic", "abort"].map(|what| {
        format!(
            "CREATE FUNCTION poison.{what}() RETURNS void LANGUAGE c AS '{library}', 'poison_{what}';
             REVOKE EXECUTE ON FUNCTION poison.{what}() FROM PUBLIC;
             GRANT EXECUTE ON FUNCTION poison.{what}() TO {owners};",
            owners = owners.join(", ")
        )
    });
    let usage = format!("GRANT USAGE ON SCHEMA poison TO {};", owners.join(", "));
    format!("CREATE SCHEMA poison; {usage} {}", functions.concat())
}
