//! Answers.
//!
//! Owns: status, body, and the form of an error. Does not own: what is wrong (`failure`, which has the daemon's texts).

use serde_json::{Value, json};

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body; `None` has no Content-Length either.
    pub body: Option<String>,
    /// Type of the body.
    pub content_type: &'static str,
}

const JSON: &str = "application/json";

impl Answer {
    /// Success without data.
    #[must_use]
    pub fn done() -> Self {
        Self { status: 204, body: None, content_type: JSON }
    }

    /// Success with data.
    #[must_use]
    pub fn json(value: &Value) -> Self {
        Self { status: 200, body: Some(value.to_string()), content_type: JSON }
    }

    /// Plain text.
    #[must_use]
    pub fn text(status: u16, content_type: &'static str, body: String) -> Self {
        Self { status, body: Some(body), content_type }
    }

    /// An error in the contract's form.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        let body = json!({"code": "UNDEFINED", "message": message});
        Self { status, body: Some(body.to_string()), content_type: JSON }
    }

    /// A wrong method, a body where none belongs, or none where one does.
    #[must_use]
    pub fn bad_request() -> Self {
        Self::error(400, "BadRequest")
    }
}
