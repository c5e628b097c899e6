//! Built-in functions called directly.

use crate::pg::encoding;
use pgrx::pg_sys;

/// `payload ->> key`: none if the payload is no object or has no such key, or a null there.
pub fn jsonb_field_text(payload: pg_sys::Datum, key: &str) -> Option<String> {
    let name = encoding::to_server(key);
    // A string, as a name is, lies there as it is; how anything else is written as text only the server's function knows.
    // SAFETY: the datum is a jsonb, and the detoasted copy, if one was needed, is there until the end. A string's bytes lie in it.
    unsafe {
        let (kept, mut found) = (payload.cast_mut_ptr::<pg_sys::varlena>(), pg_sys::JsonbValue::default());
        let plain = pg_sys::pg_detoast_datum(kept);
        let root = &raw mut (*plain.cast::<pg_sys::Jsonb>()).root;
        if (*root).header & pg_sys::JB_FOBJECT == 0 {
            return None;
        }
        let name = (name.as_ptr().cast(), name.len() as i32);
        let value = pg_sys::getKeyJsonValueFromContainer(root, name.0, name.1, &mut found).as_ref()?;
        if value.type_ == pg_sys::jbvType::jbvString {
            let string = value.val.string;
            let text = encoding::from_server(std::slice::from_raw_parts(string.val.cast(), string.len as usize));
            if plain != kept {
                pg_sys::pfree(plain.cast());
            }
            return Some(text);
        }
    }
    // SAFETY: the function takes a jsonb and a text, which these are.
    let field: Option<pg_sys::Datum> = unsafe {
        pgrx::direct_function_call_as_datum(
            pg_sys::jsonb_object_field_text,
            &[Some(payload), Some(encoding::to_text(key))],
        )
    };
    field.map(encoding::from_text)
}

/// Text to jsonb through the server's own parser.
pub fn jsonb_from_text(json: &str) -> Option<pg_sys::Datum> {
    let text = encoding::to_c(json);
    // SAFETY: an input function takes a C string.
    unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(text.as_ptr()))]) }
}

/// A number in [0, 1), from the server's strong random source.
pub fn random_unit() -> f64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer has the length passed.
    unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    (u64::from_ne_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

/// Is it a JSON object (and not an array or a scalar)?
pub fn jsonb_is_object(json: pg_sys::Datum) -> bool {
    // SAFETY: the function takes a jsonb, which this is.
    let kind: Option<String> = unsafe { pgrx::direct_function_call(pg_sys::jsonb_typeof, &[Some(json)]) };
    kind.as_deref() == Some("object")
}

/// How deep in triggers this is: 0 outside of any.
pub fn trigger_depth() -> i32 {
    // SAFETY: a function without arguments, whose result is an integer.
    let depth: Option<i32> = unsafe { pgrx::direct_function_call(pg_sys::pg_trigger_depth, &[]) };
    depth.unwrap_or(0)
}

/// A random (version 4) uuid.
pub fn random_uuid() -> [u8; 16] {
    // SAFETY: a function without arguments, whose result is a uuid.
    let datum = unsafe { pgrx::direct_function_call_as_datum(pg_sys::gen_random_uuid, &[]) };
    datum.map(crate::pg::spi::uuid_bytes).unwrap_or_default()
}
