//! Text between the server, which keeps it in the database's encoding, and Rust, whose strings are UTF-8.
//!
//! In a database in UTF8 nothing changes. In every other one a byte beyond ASCII becomes the character of that number and
//! that character becomes the byte again: what goes through us comes out byte for byte, whatever the encoding makes of it, and no
//! character can lack a counterpart. Letters beyond ASCII only take more room than they do in the server.

use crate::pg::error::PgError;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char};

fn is_utf8() -> bool {
    // SAFETY: reads the state of this process; a session without a database has SQL_ASCII.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

/// The server's text as a string. It may be as long as a client likes, so a lack of memory is an error as it is in the server: Rust's
/// own answer would end the process, and with it all sessions.
pub fn from_server(bytes: &[u8]) -> String {
    let mut string = String::new();
    if string.try_reserve_exact(bytes.len()).is_err() {
        PgError::new(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "out of memory").raise();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.is_ascii() || is_utf8() => string.push_str(text),
        _ if is_utf8() => string.push_str(&String::from_utf8_lossy(bytes)),
        _ => string.extend(bytes.iter().copied().map(char::from)),
    }
    string
}

/// The same of a C string, or none of a null pointer.
///
/// # Safety
/// `text` is null or a nul-terminated string of the server's.
pub unsafe fn from_c(text: *const c_char) -> Option<String> {
    // SAFETY: promised by the caller.
    unsafe { (!text.is_null()).then(|| from_server(CStr::from_ptr(text).to_bytes())) }
}

/// A string as the server's text.
pub fn to_server(text: &str) -> Cow<'_, [u8]> {
    if text.is_ascii() || is_utf8() {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
    // A text that was cut inside a character of several bytes is none of the encoding's any more.
    // SAFETY: the length is that of the buffer; an error is told, not raised.
    if !unsafe { pg_sys::pg_verifymbstr(bytes.as_ptr().cast(), bytes.len() as i32, true) } {
        bytes.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
    Cow::Owned(bytes)
}

/// The same as a C string; what follows a nul is left out, as C would.
pub fn to_c(text: &str) -> CString {
    let bytes = to_server(text);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// The same as a text datum in the current memory context.
pub fn to_text(text: &str) -> pg_sys::Datum {
    let bytes = to_server(text);
    // SAFETY: the length is that of the buffer, which is copied.
    unsafe { pg_sys::Datum::from(pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32)) }
}

/// The string in a datum that is known to be a text.
pub fn from_text(datum: pg_sys::Datum) -> String {
    // SAFETY: the caller has checked the type; the detoasted copy, if one was needed, is freed again.
    unsafe {
        let kept = datum.cast_mut_ptr::<pg_sys::varlena>();
        let plain = pg_sys::pg_detoast_datum_packed(kept);
        let length = pgrx::varsize_any_exhdr(plain);
        let text = from_server(std::slice::from_raw_parts(pgrx::vardata_any(plain).cast(), length));
        if plain != kept {
            pg_sys::pfree(plain.cast());
        }
        text
    }
}
